//! What a bound recipe is written as, and how many bits that takes.

use std::collections::BTreeMap;

use fewbit_format::{Error, Result, Storage};
use fewbit_store::ModelFile;
use fewbit_store::layout::Scheme;

use super::grids::probe;
use super::{Bound, compressible};
use crate::allocate::Granularity;
use crate::kinds::{End, Grid, MapJob};
use crate::outputs::{Format, Schemes};

/// Why the codes of a linear do not fit a tensor.
fn across(tensor: &str) -> String {
    format!("its rows are columns of `{tensor}`, where codes lie along rows; `--keep` it")
}

impl Bound {
    /// The format asked for, if it can hold every linear.
    pub(super) fn fitting_format(&mut self, file: &ModelFile) -> Result<Format> {
        let wanted = match self.format {
            Format::Auto if self.is_of_ggml()? => Format::Gguf,
            Format::Auto => Format::CompressedTensors,
            format => format,
        };
        let mut why_not = None;
        let is_by_row = self.allocation.as_ref().is_some_and(|a| a.settings.granularity == Granularity::Row);
        for ((part, graph), grids) in self.all_grids(file) {
            for (w, grid) in grids.iter().enumerate() {
                let Some(grid) = grid else { continue };
                let [rows, cols] = graph.weights[w].shape;
                let storage = probe(&**grid, cols)?;
                let held = match wanted {
                    Format::Gguf if self.input.is_some() || self.cache.is_some() => {
                        Err("GGUF has no place for what is rounded while the model runs; use `--format fewbit`"
                            .to_owned())
                    }
                    _ if is_by_row && !matches!(storage, Storage::Int(_)) => {
                        return Err(Error::input("rows of two widths are stored as integers, and the grid is another")
                            .hint("take `grid.int`, or another `allocate.granularity`"));
                    }
                    Format::Fewbit => wanted.layout().can_hold_rows(&storage, rows),
                    _ if is_by_row => Err("it has no place for rows of two widths".to_owned()),
                    _ if self.program.has_sides() => Err("it has no place for what stands beside codes".to_owned()),
                    _ if self.online.is_some() => Err("it has no place for maps that run with the model".to_owned()),
                    Format::Gguf => match file.exported_gguf(part, &graph.weights[w].name) {
                        Some(at) if at.is_transposed => Err(across(&at.tensor())),
                        _ => fewbit_export::can_hold_gguf(&storage).map(|_| ()),
                    },
                    _ if self.cache.is_some() && !wanted.layout().has_caches() => {
                        Err("it has no place for keys and values that are rounded".to_owned())
                    }
                    _ => wanted.layout().can_hold_rows(&storage, rows).and_then(|()| match &self.input {
                        Some(input) => wanted.layout().can_hold_input(&storage, input.grid(), input.clip()),
                        None => Ok(()),
                    }),
                };
                if let (Err(reason), None) = (held, &why_not) {
                    let module = file.exported(part, &graph.weights[w].name)?.name;
                    why_not = Some(Error::input(format!("{} cannot hold it: {reason}", wanted.name())).tensor(&module));
                }
            }
        }
        if why_not.is_none()
            && let Err(why) = wanted.layout().can_hold_together(&self.schemes(file)?)
        {
            why_not = Some(Error::input(format!("{} cannot hold the model: {why}", wanted.name())));
        }
        match (why_not, self.format) {
            (None, _) => Ok(wanted),
            (Some(e), Format::Auto) => {
                self.notes.push(format!("written in fewbit's own layout, since {e}"));
                Ok(Format::Fewbit)
            }
            // The reason of a GGUF file has its way out.
            (Some(e), Format::Gguf) => Err(e),
            (Some(e), _) => Err(e.hint("choose a grid that it holds, or `--format fewbit`")),
        }
    }

    /// Whether the first linear that is compressed becomes blocks of ggml.
    fn is_of_ggml(&self) -> Result<bool> {
        let first = self.grids.iter().flatten().flatten().next();
        // A row that blocks of every size tile.
        Ok(match first {
            Some(grid) => matches!(probe(&**grid, 1 << 12)?, Storage::Ggml(_)),
            None => false,
        })
    }

    /// What every linear of the written model is stored as, by module.
    pub(crate) fn schemes(&self, file: &ModelFile) -> Result<Schemes> {
        let mut schemes: BTreeMap<String, Option<Scheme>> = BTreeMap::new();
        for ((part, graph), grids) in compressible(file).zip(&self.grids) {
            for (w, grid) in graph.weights.iter().zip(grids) {
                let scheme = match grid {
                    Some(g) => {
                        Scheme::of(&probe(&**g, w.shape[1])?).map(|s| s.rounded(self.input.as_ref().map(|a| a.grid())))
                    }
                    None => None,
                };
                schemes.insert(file.exported(part, &w.name)?.name, scheme);
            }
        }
        Ok(schemes.into_iter().collect())
    }

    /// Everything stored of a matrix.
    pub(crate) fn weight_bits(&self, grid: &dyn Grid, [rows, cols]: [usize; 2]) -> u64 {
        let end = |end, dim| {
            let job = MapJob { name: "", end, dim, is_rotated: false, seed: 0 };
            self.online.as_ref().and_then(|t| t.choose(&job)).map_or(0, |m| m.stored_bits())
        };
        let maps = end(End::Input, cols) + end(End::Output, rows);
        let input = self.input.as_ref().map_or(0, |a| a.grid().dynamic().stored_bits());
        grid.stored_bits(rows, cols) + self.program.side_bits(rows, cols) + input + maps
    }

    /// Everything that the written file has of a matrix, the padding of its layout included.
    pub(crate) fn written_bits(&self, grid: &dyn Grid, shape: [usize; 2]) -> Result<u64> {
        if !self.format.is_shared() {
            return Ok(self.weight_bits(grid, shape));
        }
        let all_rows = probe(grid, shape[1])?.select_rows(&vec![0; shape[0]])?;
        let tensors = self.format.layout().tensors("module", &all_rows)?;
        let is_counted = |name: &str| !name.ends_with(".weight_shape");
        Ok(tensors.iter().filter(|(name, _)| is_counted(name)).map(|(_, t)| 8 * t.bytes.len() as u64).sum())
    }

    /// Everything stored ÷ weights, of the linears that are compressed; `None` where none is.
    pub(crate) fn bits_per_weight(&self, file: &ModelFile) -> Option<f64> {
        let (mut bits, mut weights) = (0, 0);
        for ((_, graph), grids) in compressible(file).zip(&self.grids) {
            for (w, grid) in graph.weights.iter().zip(grids) {
                if let Some(g) = grid {
                    bits += self.weight_bits(&**g, w.shape);
                    weights += w.shape[0] * w.shape[1];
                }
            }
        }
        let most = self.allocation.as_ref().map_or(f64::INFINITY, |a| a.settings.bits);
        (weights > 0).then(|| (bits as f64 / weights as f64).min(most))
    }
}
