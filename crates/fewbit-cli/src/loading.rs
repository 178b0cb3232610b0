use std::sync::Arc;

use fewbit_format::{Error, Result};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Runtime};
use fewbit_store::{Checkpoint, ModelFile};

use crate::arguments::ArithmeticName;
use crate::bundled::resolve_model;
use crate::session::Session;

/// Opens a checkpoint: headers only.
pub(crate) fn checkpoint(session: &Session, model: &str) -> Result<Checkpoint> {
    Checkpoint::open(&resolve_model(session, model)?)
}

/// Opens a model, and says what was noticed.
pub(crate) fn model_file(session: &Session, model: &str) -> Result<ModelFile> {
    let file = ModelFile::of(checkpoint(session, model)?)?;
    for note in file.notes() {
        session.output.note(&format!("note: {note}"));
    }
    Ok(file)
}

/// Loads a model's weights, if they can be run in that arithmetic.
pub(crate) fn runtime(session: &Session, file: &ModelFile, name: ArithmeticName) -> Result<Runtime> {
    runtime_on(session, file, name, session.team())
}

/// [`runtime`] on threads that it shares.
pub(crate) fn runtime_on(
    session: &Session,
    file: &ModelFile,
    name: ArithmeticName,
    team: Arc<Team>,
) -> Result<Runtime> {
    let place = |e: Error| e.file(file.checkpoint().path());
    file.quantization().check(name == ArithmeticName::WeightsOnly).map_err(place)?;
    let arithmetic = match name {
        ArithmeticName::Fast => Arithmetic::Fast,
        ArithmeticName::Exact => Arithmetic::Exact,
        ArithmeticName::WeightsOnly => Arithmetic::WeightsOnly,
    };
    session.check_stop()?;
    Runtime::load(file, arithmetic, team)
}
