use std::ops::Range;
use std::sync::Arc;

use fewbit_format::{Error, Mat, Result};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Runtime};
use fewbit_store::ModelFile;

use crate::cache::{self, Cache, Reader, Shape, Writer};
use crate::windows::Windows;
use crate::{forward, row};

/// The model that another one is compared with: run beside it, or its recorded log-probabilities.
pub struct Original {
    source: Source,
    team: Arc<Team>,
    /// For errors.
    name: String,
}

enum Source {
    Model { runtime: Arc<Runtime>, residual: Vec<f32>, recorder: Option<Writer> },
    Recorded(Reader),
}

impl Original {
    /// Runs beside the model, window by window.
    pub fn beside(runtime: Arc<Runtime>) -> Self {
        let team = runtime.team().clone();
        let source = Source::Model { runtime, residual: Vec::new(), recorder: None };
        Self { source, team, name: "beside the original".to_owned() }
    }

    /// The log-probabilities that `cache` has for these windows; else the model is loaded, in exact f32, and what it
    /// says is recorded on the way where it is small enough.
    ///
    /// # Errors
    /// If the model cannot be loaded.
    pub fn open(file: &ModelFile, windows: &Windows, cache: Option<&Cache>, team: Arc<Team>) -> Result<Self> {
        let shape = Shape { rows: windows.tokens(), vocabulary: file.model().vocabulary };
        let name = format!("beside the original `{}`", file.checkpoint().path().display());
        let key = cache.map(|_| cache::key(file, windows)).transpose()?;
        let entry = cache.zip(key.as_ref());
        if let Some(reader) = entry.and_then(|(c, k)| c.open(k, shape)) {
            return Ok(Self { source: Source::Recorded(reader), team, name });
        }
        let runtime = Arc::new(Runtime::load(file, Arithmetic::Exact, team.clone())?);
        let recorder = entry.and_then(|(c, k)| c.create(k, shape));
        Ok(Self { source: Source::Model { runtime, residual: Vec::new(), recorder }, team, name })
    }

    /// Whether nothing is run: the log-probabilities are those of an earlier evaluation.
    pub fn is_recorded(&self) -> bool {
        matches!(self.source, Source::Recorded(_))
    }

    pub(crate) fn vocabulary(&self) -> usize {
        match &self.source {
            Source::Model { runtime, .. } => runtime.model().vocabulary,
            Source::Recorded(reader) => reader.shape().vocabulary,
        }
    }

    /// Before the first window.
    pub(crate) fn begin(&mut self, windows: &Windows) -> Result<()> {
        match &mut self.source {
            Source::Model { .. } => Ok(()),
            Source::Recorded(reader) if reader.shape().rows == windows.tokens() => reader.rewind(),
            Source::Recorded(_) => Err(Error::internal("recorded log-probabilities belong to other windows")),
        }
    }

    /// Before the rows of a window.
    pub(crate) fn window(&mut self, fed: &[u32]) -> Result<()> {
        if let Source::Model { runtime, residual, .. } = &mut self.source {
            *residual = forward::residual(runtime, fed).map_err(|e| e.place(&self.name))?;
        }
        Ok(())
    }

    /// Logits of the rows that follow, and the nats of their `targets`.
    pub(crate) fn rows(&mut self, rows: Range<usize>, targets: &[u32]) -> Result<(Mat, Vec<f64>)> {
        match &mut self.source {
            Source::Recorded(reader) => reader.rows(&self.team, rows.len()),
            Source::Model { runtime, residual, recorder } => {
                let logits = forward::logits(runtime, residual, rows).map_err(|e| e.place(&self.name))?;
                let mut nll = vec![0.0; targets.len()];
                self.team.for_pieces(&mut nll, 1, &|r, nll| nll[0] = row::nll(logits.row(r), targets[r]));
                *recorder = recorder.take().and_then(|w| w.push(&self.team, &logits, &nll));
                Ok((logits, nll))
            }
        }
    }

    /// After the last window: the recording is kept.
    pub(crate) fn end(&mut self) {
        if let Source::Model { recorder, .. } = &mut self.source
            && let Some(writer) = recorder.take()
        {
            writer.finish();
        }
    }
}
