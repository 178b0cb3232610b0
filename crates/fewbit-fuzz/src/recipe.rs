use fewbit_engine::{Recipe, Settings};
use fewbit_methods::REGISTRY;

/// A recipe, up to passes that are ready to work.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(recipe) = Recipe::parse(text) else { return };
    let settings = Settings::default();
    let _ = recipe.pass_names().count();
    let _ = (recipe.calibration(&settings), recipe.allocate(&settings));
    let _ = recipe.compile(&settings, &REGISTRY, "f16");
}
