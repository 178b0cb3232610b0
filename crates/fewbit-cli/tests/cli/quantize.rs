//! `fewbit quantize`: what is written, and that the program reads its own results.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fewbit_store::Safetensors;
use serde_json::Value;

use crate::bench::{files, same_bytes, small_model};
use crate::{Ran, command, fewbit};

/// Runs `quantize` with very little text and few steps of a search.
fn quantize(model: &str, recipe: &str, out: &Path, more: &[&str]) -> Ran {
    let args = ["quantize", model, "--recipe", recipe, "--out", out.to_str().unwrap(), "--json"];
    let search = ["--set", "transform.steps=2", "--set", "grid.steps=4"];
    let search = if recipe == "awq" { &search[..] } else { &[] };
    fewbit(&[&args[..], &["--samples", "4", "--length", "64"], search, more].concat())
}

fn logits(model: &Path) -> Value {
    let args = ["logits", model.to_str().unwrap(), "--ids", "0,17,300,4000", "--arithmetic", "weights-only", "--json"];
    fewbit(&args).good()["logits"].take()
}

/// What the report says holds for the folder.
#[track_caller]
fn checked(report: &Value, out: &Path, format: &str, blocks: usize) {
    assert_eq!((report["out"].as_str(), report["format"].as_str()), (out.to_str(), Some(format)));
    for key in ["seconds", "cpu_seconds", "peak_rss_bytes", "peak_anon_bytes"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert_eq!(report["blocks"].as_array().unwrap().len(), blocks);
    for block in report["blocks"].as_array().unwrap() {
        let linears = block["linears"].as_array().unwrap();
        assert_eq!(linears.len(), 7, "{block}");
        assert!(linears.iter().all(|l| l["bits_per_weight"] == report["bits_per_weight"]), "{report}");
    }
    let read = fewbit(&["inspect", out.to_str().unwrap(), "--json"]).good();
    for key in ["bits_per_weight", "bits_per_weight_model"] {
        assert_eq!(read[key], report[key], "{key}");
    }
    let stored: u64 = (files(out).iter())
        .filter(|(name, _)| name.is_empty() || [".safetensors", ".gguf"].iter().any(|e| name.ends_with(e)))
        .map(|(_, bytes)| bytes.len() as u64)
        .sum();
    let size = read["size_bytes"].as_u64().unwrap();
    assert!(size < stored && stored < size + 400_000, "{size} of tensors in {stored} bytes");
}

#[test]
fn every_recipe_writes_every_format_and_all_mean_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["rtn", "gptq", "awq"] {
        let write = |format: &str, more: &[&str]| {
            let out = dir.path().join(format!("{recipe}-{format}{}", more.len()));
            (quantize("demo", recipe, &out, &[&["--format", format], more].concat()), out)
        };
        // Asymmetric groups of 128: 4 bits, and 16 and 4 more for each group. No block of ggml is like that.
        let mut seen = Vec::new();
        for (format, written) in
            [("auto", "compressed-tensors"), ("compressed-tensors", "compressed-tensors"), ("fewbit", "fewbit")]
        {
            let (ran, out) = write(format, &[]);
            let report = ran.good();
            assert_eq!(report["bits_per_weight"], 4.0 + 20.0 / 128.0);
            checked(&report, &out, written, 4);
            seen.push(logits(&out));
        }
        assert!(seen.windows(2).all(|w| w[0] == w[1]), "{recipe}");
        let (ran, out) = write("gguf", &[]);
        ran.refused(&["model.layers.0.", "gguf cannot hold it", "`--group 32 --symmetric"]);
        assert!(!out.exists() && !dir.path().join(format!("{recipe}-gguf0.partial")).exists());

        let blocks = ["--group", "32", "--symmetric", "--set", "grid.scale=f16"];
        let (ran, out) = write("gguf", &blocks);
        let report = ran.good();
        assert_eq!(report["bits_per_weight"], 4.5);
        checked(&report, &out, "gguf", 4);
        let (ran, other) = write("fewbit", &blocks);
        ran.good();
        assert_eq!(logits(&out), logits(&other), "{recipe}");
        assert_ne!(logits(&out), seen[0], "{recipe}");
        // A logit that is no number would be null.
        let finite = |row: &Value| row.as_array().unwrap().iter().all(Value::is_f64);
        assert!([&seen[0], &logits(&out)].iter().all(|l| l.as_array().unwrap().iter().all(finite)), "{recipe}");
    }
}

/// GPT-2 stores plain matrices `[in, out]`: kept ones lie as they did, codes by rows as other tools have them.
#[test]
fn transposed_matrices_are_kept_and_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/families/gpt2");
    let logits = |model: &Path| -> Vec<f64> {
        let args = ["logits", model.to_str().unwrap(), "--ids", "0,17,30,40", "--arithmetic", "weights-only", "--json"];
        let rows = fewbit(&args).good()["logits"].take();
        rows.as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap()).map(|v| v.as_f64().unwrap()).collect()
    };
    let write = |name: &str, more: &[&str]| {
        let (out, args) = (dir.path().join(name), ["quantize", model, "--recipe", "rtn", "--json", "--out"]);
        fewbit(&[&args[..], &[out.to_str().unwrap()], more].concat()).good();
        out
    };
    let tensors = |folder: &Path| -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
        let shards = files(folder).into_keys().filter(|n| n.starts_with("model") && n.ends_with(".safetensors"));
        let shards = shards.map(|n| Safetensors::open(&folder.join(n)).unwrap());
        let of = |shard: &Safetensors, n: &str| shard.tensor(n).map(|t| (t.shape, t.bytes.to_vec())).unwrap();
        shards.flat_map(|s| s.names().map(|n| (n.to_owned(), of(&s, n))).collect::<Vec<_>>()).collect()
    };
    let (source, before) = (tensors(Path::new(model)), logits(Path::new(model)));
    let kept = tensors(&write("kept", &["--keep", "*"]));
    assert_eq!(kept["transformer.h.0.attn.c_attn.weight"].0, [32, 96]);
    let weights = source.iter().filter(|(name, _)| !name.ends_with(".attn.bias") && !name.ends_with("masked_bias"));
    for (name, tensor) in weights.clone() {
        assert!(kept.get(&format!("transformer.{name}")) == Some(tensor), "{name}");
    }
    assert_eq!(kept.len(), weights.count());
    for format in ["compressed-tensors", "fewbit"] {
        let out = write(format, &["--format", format, "--bits", "8", "--group", "32"]);
        if format == "compressed-tensors" {
            assert_eq!(tensors(&out)["transformer.h.0.attn.c_attn.weight_packed"].0, [96, 8]);
        }
        let (after, largest) = (logits(&out), before.iter().fold(0.0f64, |m, v| m.max(v.abs())));
        let off = before.iter().zip(&after).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(off > 0.0 && off < 0.05, "{format}: {off}");
    }
}

#[test]
fn a_width_that_a_format_lacks_is_written_in_our_own_layout_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_model(&dir.path().join("model"), "2", "0");
    let run = |name: &str, more: &[&str]| quantize(&model, "rtn", &dir.path().join(name), more);
    let ran = run("auto", &["--group", "32", "--bits", "1"]);
    assert_eq!(ran.good()["format"], "fewbit");
    assert!(ran.stderr.contains("written in fewbit's own layout, since"), "{}", ran.stderr);
    let args = ["--group", "32", "--bits", "1", "--format", "compressed-tensors"];
    run("ct", &args).refused(&["compressed-tensors cannot hold it", "--format fewbit"]);
    assert!(!dir.path().join("ct").exists());
}

#[test]
fn a_dry_run_says_all_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plan = quantize("demo", "gptq", &out, &["--dry-run"]).good();
    for key in ["peak_bytes", "out_bytes", "seconds_estimate"] {
        assert!(plan[key].as_f64().unwrap() > 0.0, "{key}: {plan}");
    }
    assert!(plan["refused"].is_null(), "{plan}");
    let sweep = &plan["sweeps"][0];
    assert_eq!(sweep["blocks"], 4);
    let work = sweep["work"].as_str().unwrap();
    assert!(work.contains("4 × 64 tokens") && work.contains("w4 g128") && work.contains("solve.gptq"), "{work}");

    let ran = quantize("demo", "gptq", &out, &["--dry-run", "--group", "100"]);
    ran.refused(&["model.layers.0.self_attn.q_proj.weight", "100"]);
    let refused = ran.json();
    assert!(refused["refused"].as_str().unwrap().contains("100"), "{refused}");
    assert!(refused["sweeps"].as_array().unwrap().is_empty() && refused["peak_bytes"].is_null(), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    // The size that was said is the size that is written, headers aside.
    quantize("demo", "gptq", &out, &[]).good();
    let size = fewbit(&["inspect", out.to_str().unwrap(), "--json"]).good()["size_bytes"].as_f64().unwrap();
    assert!((plan["out_bytes"].as_f64().unwrap() / size - 1.0).abs() < 0.01, "{plan} and {size}");
}

#[test]
fn threads_folders_and_names_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let here = fs::canonicalize(dir.path()).unwrap();
    small_model(&here.join("model"), "3", "0");
    fs::create_dir_all(here.join("far/away")).unwrap();
    fs::write(here.join("text.txt"), "Once upon a time there was a dog who liked to run in the park. ".repeat(20))
        .unwrap();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    for recipe in ["rtn", "gptq", "awq"] {
        for format in ["fewbit", "gguf"] {
            let run = |cwd: &str, model: &Path, text: &Path, out: &str, threads: &str| {
                let args = ["quantize", model.to_str().unwrap(), "--recipe", recipe, "--out", out, "--format", format];
                let grid = ["--group", "32", "--symmetric", "--samples", "5", "--length", "33", "--calibration"];
                let more = [text.to_str().unwrap(), "--threads", threads];
                let ran = command(&[&args[..], &grid, &more].concat()).current_dir(here.join(cwd)).output().unwrap();
                assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
                files(&here.join(cwd).join(out))
            };
            let (one, two) = (format!("one-{recipe}-{format}"), format!("two-{recipe}-{format}"));
            let absolute = (here.join("model"), here.join("text.txt"));
            let a = run("", &absolute.0, &absolute.1, &one, "1");
            let b = run("far/away", Path::new("../../model"), Path::new("../../text.txt"), &two, "2");
            same_bytes(&a, &b, &format!("{recipe} {format}"));
            for (name, bytes) in &a {
                for trace in [here.to_str().unwrap(), &one, &two, host.trim()].iter().filter(|t| t.len() > 3) {
                    let found = bytes.windows(trace.len()).any(|w| w == trace.as_bytes());
                    assert!(!found, "{recipe} {format}: {name} holds `{trace}`");
                }
            }
        }
    }
}

/// The grid of each linear of block 0, by the last part of its name.
fn grids(report: &Value) -> BTreeMap<String, String> {
    let linears = report["blocks"][0]["linears"].as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    linears.map(|l| (text(&l["name"]).rsplit('.').next().unwrap().to_owned(), text(&l["grid"]))).collect()
}

#[test]
fn some_linears_are_treated_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let more = ["--group", "64", "--override", "down_proj:group=row,bits=8", "--override", "*.1.*:symmetric=true"];
    let report = quantize("demo", "gptq", &out, &[&more[..], &["--keep", "o_proj"]].concat()).good();
    let seen = grids(&report);
    assert_eq!(seen.len(), 6, "{seen:?}");
    assert!(!seen.contains_key("o_proj"), "{seen:?}");
    assert_eq!((seen["down_proj"].as_str(), seen["up_proj"].as_str()), ("w8 row", "w4 g64"));
    let read = fewbit(&["inspect", out.to_str().unwrap(), "--json"]).good();
    let format = |layer: usize, name: &str| {
        let linears = read["layers"][layer]["linears"].as_array().unwrap().iter();
        let found = linears.clone().find(|l| l["name"] == name).unwrap_or_else(|| panic!("{name}: {linears:?}"));
        found["format"].as_str().unwrap().to_owned()
    };
    for layer in 0..4 {
        assert_eq!(format(layer, "self_attn.o_proj"), "BF16");
        // The later of two choices for one linear adds to the earlier.
        let symmetry = if layer == 1 { "symmetric" } else { "asymmetric" };
        assert_eq!(format(layer, "mlp.down_proj"), format!("8 bit per row {symmetry}"));
        assert_eq!(format(layer, "mlp.up_proj"), format!("4 bit group 64 {symmetry}"));
    }

    let model = small_model(&dir.path().join("model"), "2", "0");
    let plain = quantize(&model, "rtn", &dir.path().join("plain"), &["--group", "32"]);
    plain.good();
    let clip = quantize(&model, "rtn", &dir.path().join("clip"), &["--group", "32", "--set", "grid.clip=mse"]);
    clip.good();
    assert_ne!(logits(&dir.path().join("plain")), logits(&dir.path().join("clip")));
}

#[test]
fn what_is_not_possible_is_one_sentence_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (recipe, more, words) in [
        ("gtpq", &[][..], &["recipe `gtpq` is unknown", "did you mean `gptq`"][..]),
        ("zzzzzz", &[], &["recipe `zzzzzz` is unknown", "known are", "rtn"]),
        ("nowhere.toml", &[], &["nowhere.toml", "check the path"]),
        ("gptq", &["--set", "solve.dampng=0.1"], &["dampng", "did you mean `damping`"]),
        ("gptq", &["--set", "slove.damping=0.1"], &["--set slove.damping", "did you mean `solve.…`"]),
        ("gptq", &["--set", "calibration.sampels=3"], &["sampels", "did you mean `samples`"]),
        ("gptq", &["--set", "solve.damping=-1"], &["damping", "-1"]),
        ("gptq", &["--set", "solve.damping=much"], &["damping", "much"]),
        ("rtn", &["--set", "solve.damping=0.1"], &["damping"]),
        ("rtn", &["--bits", "4", "--set", "grid.bits=3"], &["`--bits 4` contradicts `--set grid.bits=3`"]),
        ("rtn", &["--set", "grid.bits=9"], &["bits", "9", "1 to 8"]),
        ("rtn", &["--set", "grid.bits=0"], &["bits", "0", "1 to 8"]),
        ("rtn", &["--override", "q_proj:bits=16"], &["q_proj.weight", "16", "1 to 8"]),
        ("rtn", &["--override", "down_proj:gruop=row"], &["gruop", "did you mean `group`"]),
        ("rtn", &["--override", "down_proj"], &["--override down_proj", "PATTERN:KEY=VALUE"]),
        ("rtn", &["--override", "nothing:bits=3"], &["--override nothing", "model.layers.0.self_attn.q_proj"]),
        ("rtn", &["--keep", "nothing"], &["--keep nothing", "model.layers.0.self_attn.q_proj"]),
        ("rtn", &["--group", "100"], &["model.layers.0.self_attn.q_proj.weight", "100", "256"]),
        ("rtn", &["--group", "512"], &["model.layers.0.self_attn.q_proj.weight", "512", "256"]),
        ("gptq", &["--length", "2000"], &["--length 2000", "1024"]),
    ] {
        let args = ["quantize", "demo", "--recipe", recipe, "--out", out.to_str().unwrap()];
        fewbit(&[&args[..], more].concat()).refused(words);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{recipe} {more:?}");
    }
}

#[test]
fn a_recipe_is_a_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("mine.toml"), dir.path().join("out"));
    let head = "name = \"mine\"\ncite = \"c\"\nsummary = \"s\"\ncost = \"none\"\n";
    let run = |text: &str| {
        fs::write(&path, format!("{head}{text}")).unwrap();
        quantize("demo", path.to_str().unwrap(), &out, &["--force"])
    };
    let report = run("[[pass]]\nuse = \"grid.int\"\nbits = 2\n[[pass]]\nuse = \"solve.nearest\"\n").good();
    assert_eq!(grids(&report)["q_proj"], "w2 g128");
    let whole = files(&out);
    for (text, words) in [
        ("[[pass]]\nuse = \"grid.int\"\nbits = 2\n[[pass]]\nuse = \"solve.neerest\"\n", "did you mean `solve.nearest`"),
        ("[[pass]]\nuse = \"grid.int\"\nbitz = 2\n[[pass]]\nuse = \"solve.nearest\"\n", "did you mean `bits`"),
        ("[[pass]]\nuse = \"solve.nearest\"\n", "says not to which numbers"),
        ("[[pass]]\nuse = \"gird.int\"\n", "kinds are transform, act, grid, residual, solve, learn, alternate"),
        ("[[pass]]\nbits = 3\n", "has no `use"),
        ("pass = 3\n", "pass"),
        ("[[pass]\n", "line 5"),
        ("colour = 3\n", "colour"),
    ] {
        run(text).refused(&[words]);
        same_bytes(&files(&out), &whole, text);
    }
}

#[test]
fn a_quantized_source_needs_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_model(&dir.path().join("model"), "2", "0");
    let blocks = ["--group", "32", "--symmetric", "--set", "grid.scale=f16", "--format"];
    for (name, format, what) in
        [("made.gguf", "gguf", "blocks of ggml"), ("folder", "compressed-tensors", "4 bit"), ("own", "fewbit", "4 bit")]
    {
        let (source, out) = (dir.path().join(name), dir.path().join(format!("again-{name}")));
        quantize(&model, "rtn", &source, &[&blocks[..], &[format]].concat()).good();
        let from = source.to_str().unwrap();
        quantize(from, "rtn", &out, &["--bits", "8", "--group", "32"]).refused(&[
            from,
            "is already quantized",
            what,
            "--requantize",
        ]);
        assert!(!out.exists());
        let ran = quantize(from, "rtn", &out, &["--bits", "8", "--group", "row", "--requantize"]);
        ran.good();
        assert!(ran.stderr.contains("its decoded weights are the original"), "{}", ran.stderr);
        let manifest: Value = serde_json::from_slice(&files(&out)["fewbit.json"]).unwrap();
        assert_eq!(manifest["dequantized_first"], true);
        // The lattice of 4 bits is kept closely by 8 bits, and the result runs without a further word.
        let close = |a: &Value, b: &Value| {
            let row = |v: &Value| v[3].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
            let (a, b) = (row(a), row(b));
            let difference: f64 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
            difference / a.iter().map(|x| x * x).sum::<f64>()
        };
        assert!(close(&logits(&source), &logits(&out)) < 1e-3, "{name}");
    }
}
