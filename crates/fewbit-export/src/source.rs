use fewbit_format::Result;
use fewbit_store::ModelFile;

use crate::{config, gguf, sidecars};

/// Whether all of a result that does not depend on its weights can be written: the configuration, the files beside the
/// weights and, `to_gguf`, the keys and the vocabulary of a GGUF file.
///
/// It is asked before the work, so that no work ends in a refusal.
///
/// # Errors
/// What the writing would say.
pub fn check_source(file: &ModelFile, to_gguf: bool) -> Result<()> {
    config(file, None, file.is_tied())?;
    sidecars(file)?;
    if to_gguf { gguf::check(file) } else { Ok(()) }
}
