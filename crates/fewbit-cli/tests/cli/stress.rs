//! What large models have and small ones lack, put into a small one.

use std::fs;

use crate::fewbit;

/// The model computes what it computed; rounding to nearest loses much more than a method that was made for outliers.
#[test]
fn a_stress_model_computes_the_same_and_is_hard_to_round() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let text = "Once upon a time there was a little dog. He liked to run in the park and to play with his red ball. ";
    fs::write(path("text.txt"), text.repeat(12)).unwrap();
    let made = fewbit(&["make-stress", "demo", &path("stress")]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let divergence = |model: &str| -> f64 {
        let text = path("text.txt");
        let args = ["eval", model, "--against", "demo", "--text", &text, "--length", "64", "--blocks", "4", "--json"];
        let ran = fewbit(&[&args[..], &["--arithmetic", "exact"]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.json()["kl_mean"].as_f64().unwrap()
    };
    assert!(divergence(&path("stress")) < 1e-6);
    let rounded = |model: &str, recipe: &str| {
        let (out, text) = (path(&format!("{recipe}-{}", model == "demo")), path("text.txt"));
        let args = ["quantize", model, "--recipe", recipe, "--out", &out, "--calibration", &text];
        let ran = fewbit(&[&args[..], &["--bits", "4", "--group", "128", "--samples", "4", "--length", "64"]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        divergence(&out)
    };
    let stress = path("stress");
    let [easy, nearest, gptq, awq] =
        [rounded("demo", "rtn"), rounded(&stress, "rtn"), rounded(&stress, "gptq"), rounded(&stress, "awq")];
    assert!(nearest > 3.0 * easy, "nearest: {nearest}, {easy} without outliers");
    assert!(gptq < 0.6 * nearest && awq < 0.6 * nearest, "nearest {nearest}, GPTQ {gptq}, AWQ {awq}");
}
