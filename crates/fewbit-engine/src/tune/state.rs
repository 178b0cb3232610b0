//! Where learning stands, on the disk.

use std::path::Path;

use fewbit_format::{Dtype, Error, Result, Tensor};
use fewbit_store::Safetensors;

use super::learned::Learned;
use crate::outputs::write_shard;

/// The values of all leaves: by linear, by leaf.
pub(super) type Values = Vec<Vec<Vec<f32>>>;

/// The values of all leaves as they are.
pub(super) fn values(learned: &[Learned]) -> Values {
    learned.iter().map(Learned::values).collect()
}

/// Writes the values of all leaves.
pub(super) fn save_values<'a>(path: &Path, learned: impl Iterator<Item = &'a Learned>) -> Result<()> {
    let mut tensors = Vec::new();
    for (l, learned) in learned.enumerate() {
        for (k, leaf) in learned.fake.leaves().iter().enumerate() {
            tensors.push((format!("{l}.{k}.leaf"), floats(&leaf.values)?));
        }
    }
    write_shard(path, &tensors)
}

/// Puts back what [`save_values`] wrote of the same leaves.
pub(super) fn restore_values(path: &Path, learned: &mut [Learned]) -> Result<()> {
    let file = Safetensors::open(path)?;
    for (l, learned) in learned.iter_mut().enumerate() {
        for (k, leaf) in learned.fake.leaves_mut().into_iter().enumerate() {
            read(&file, path, &format!("{l}.{k}.leaf"), &mut leaf.values)?;
        }
    }
    Ok(())
}

fn floats(values: &[f32]) -> Result<Tensor> {
    Tensor::from_f32(Dtype::F32, &[values.len()], values)
}

/// Reads as many floats as there are places.
fn read(file: &Safetensors, path: &Path, name: &str, to: &mut [f32]) -> Result<()> {
    let values = file.tensor(name)?.to_f32()?;
    if values.len() != to.len() {
        return Err(another(path));
    }
    to.copy_from_slice(&values);
    Ok(())
}

fn another(path: &Path) -> Error {
    Error::input("is the state of another run").file(path).hint("delete it")
}

/// How far learning is.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Which block and pass.
    pub(super) place: [usize; 2],
    /// Steps that are done.
    pub(super) done: usize,
    /// The best leaves that were seen.
    pub(super) best: Values,
    /// The error at the start.
    pub(super) first: f64,
    /// The error of the best.
    pub(super) least: f64,
}

impl State {
    /// Writes it down with the leaves and optimizers as they are, so that a run that is ended goes on from here.
    pub(super) fn save(&self, folder: &Path, learned: &[Learned]) -> Result<()> {
        let [block, pass] = self.place;
        let numbers = [block as u64, pass as u64, self.done as u64, self.first.to_bits(), self.least.to_bits()];
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let numbers = Tensor { dtype: Dtype::U8, shape: vec![bytes.len()], bytes: bytes.into() };
        let mut tensors = vec![(NUMBERS.to_owned(), numbers)];
        for (l, (learned, best)) in learned.iter().zip(&self.best).enumerate() {
            let leaves = learned.fake.leaves().into_iter().zip(&learned.optimizers).zip(best);
            for (k, ((leaf, optimizer), best)) in leaves.enumerate() {
                tensors.push((format!("{l}.{k}.leaf"), floats(&leaf.values)?));
                tensors.push((format!("{l}.{k}.best"), floats(best)?));
                tensors.push((format!("{l}.{k}.optimizer"), floats(optimizer.state())?));
            }
        }
        write_shard(&folder.join(STATE), &tensors)
    }

    /// What an earlier run wrote down for this block and pass, leaves and optimizers put back.
    pub(super) fn restore(folder: &Path, place: [usize; 2], learned: &mut [Learned]) -> Result<Option<Self>> {
        let path = folder.join(STATE);
        if !path.exists() {
            return Ok(None);
        }
        let file = Safetensors::open(&path)?;
        let bytes = file.tensor(NUMBERS)?.bytes;
        let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let [block, pass, done, first, least] = numbers[..] else { return Err(another(&path)) };
        if [block as usize, pass as usize] != place {
            return Ok(None);
        }
        let mut best = values(learned);
        for (l, (learned, best)) in learned.iter_mut().zip(&mut best).enumerate() {
            let leaves = learned.fake.leaves_mut().into_iter().zip(&mut learned.optimizers).zip(best);
            for (k, ((leaf, optimizer), best)) in leaves.enumerate() {
                read(&file, &path, &format!("{l}.{k}.leaf"), &mut leaf.values)?;
                read(&file, &path, &format!("{l}.{k}.best"), best)?;
                read(&file, &path, &format!("{l}.{k}.optimizer"), optimizer.state_mut())?;
            }
        }
        let (first, least) = (f64::from_bits(first), f64::from_bits(least));
        Ok(Some(Self { place, done: done as usize, best, first, least }))
    }

    /// Removes what was written down.
    pub(super) fn remove(folder: &Path) -> Result<()> {
        let path = folder.join(STATE);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", &path, &e)),
            _ => Ok(()),
        }
    }
}

/// The file in the working folder.
const STATE: &str = "learning.safetensors";

/// Its tensor of numbers: block, pass, steps, errors.
const NUMBERS: &str = "numbers";
