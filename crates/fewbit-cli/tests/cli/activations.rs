//! Recipes that round inputs too, on the bundled model: each beats what it was made from.

use std::fs;

use tempfile::TempDir;

use crate::fewbit;

/// A text that calibration has not seen, and results beside it.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("text"), &include_str!("../../../../assets/evaluation.txt")[..6000]).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Divergence from the original, and true bits.
    fn measured(&self, recipe: &str, more: &[&str]) -> (f64, f64) {
        let (text, out) = (self.path("text"), self.path("out"));
        let args =
            ["quantize", "demo", "--recipe", recipe, "--out", &out, "--samples", "6", "--length", "128", "--json"];
        let bits = fewbit(&[&args[..], more].concat()).good()["bits_per_weight"].as_f64().unwrap();
        let args = ["eval", &out, "--against", "demo", "--text", &text, "--length", "128", "--json"];
        let kl = fewbit(&args).good()["kl_mean"].as_f64().unwrap();
        fs::remove_dir_all(&out).unwrap();
        (kl, bits)
    }
}

#[test]
fn our_compositions_beat_what_they_are_made_of() {
    let bench = Bench::new();
    // A few steps show that gradients pass through rounded inputs and maps; what many of them give is measured elsewhere.
    let few = ["--set", "learn.steps=4", "--set", "learn.batch=2"];
    for (ours, parent, more, share) in [
        ("fewbit-w8a8", "smoothquant-w8a8", &[][..], 0.8),
        ("fewbit-fp8", "fp8-block", &[][..], 0.95),
        ("fewbit-nvfp4", "nvfp4-w4a4", &few[..], 0.95),
        ("fewbit-mxfp4", "mxfp4-w4a4", &few[..], 0.98),
    ] {
        let [(kl, bits), (parents, most)] =
            [(ours, more), (parent, &[][..])].map(|(recipe, more)| bench.measured(recipe, more));
        assert!(kl < share * parents, "{ours}: {kl}, {parent}: {parents}");
        assert!(bits <= most + 0.001, "{ours}: {bits} bits, {parent}: {most}");
    }
}

/// Eight bits for weights and inputs lose less than four for weights alone, and groups of a float's inputs less than one scale
/// for all tokens ("Give Me BF16 or Give Me Death?", 2024).
#[test]
fn eight_bits_lose_less_than_four() {
    let bench = Bench::new();
    let four = bench.measured("gptq", &["--symmetric"]).0;
    let eight = ["smoothquant-w8a8", "fp8-block", "fp8-dynamic", "fp8-static"].map(|r| bench.measured(r, &[]).0);
    println!("{eight:?}, four bits {four}");
    assert!(eight.iter().all(|kl| *kl < 0.6 * four), "{eight:?}, four bits {four}");
    assert!(eight[1..3].iter().all(|kl| *kl < eight[3]), "{eight:?}");
}

/// `quarot-w4a8`, `quarot-w4a4`: against the same without any rotation.
#[test]
fn rotated_inputs_lose_less() {
    let bench = Bench::new();
    for (recipe, act) in [("quarot-w4a8", "bits = 8"), ("quarot-w4a4", "bits = 4\nclip = 0.9")] {
        let plain = bench.path("plain.toml");
        let text = format!(
            "name = \"plain\"\ncite = \"none\"\nsummary = \"none\"\ncost = \"none\"\n\
             [[pass]]\nuse = \"grid.int\"\ngroup = \"row\"\nsymmetric = true\nclip = \"mse\"\n\
             [[pass]]\nuse = \"solve.gptq\"\n[[pass]]\nuse = \"act.int\"\n{act}\n"
        );
        fs::write(&plain, text).unwrap();
        let [(rotated, _), (kl, _)] = [recipe, &plain].map(|recipe| bench.measured(recipe, &[]));
        assert!(rotated < 0.9 * kl, "{recipe}: {rotated}, without rotations {kl}");
    }
}
