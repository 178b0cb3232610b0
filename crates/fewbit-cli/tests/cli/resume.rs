//! `fewbit quantize` that is ended, resumed, or sent where something stands already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Ran;
use crate::bench::{Bench, files, same_bytes, small_model};

/// Ends a run at every point at which the state on the disk changes, and resumes it.
///
/// With `replaces`, an older result stands where the new one goes: as long as the new one is not whole, it is there.
fn dies_everywhere(name: &str, args: &[&str], replaces: bool) {
    dies_everywhere_with("2", name, args, replaces);
}

fn dies_everywhere_with(layers: &str, name: &str, args: &[&str], replaces: bool) {
    let bench = Bench::new(layers);
    let whole = bench.whole(name, args);
    let out = bench.path(name);
    let partial = bench.path(&format!("{name}.partial"));
    let old = replaces.then(|| bench.whole(&format!("old-{name}"), &[args, &["--bits", "8"]].concat()));
    let older = bench.path(&format!("old-{name}"));
    for n in 1.. {
        if out.is_dir() {
            fs::remove_dir_all(&out).unwrap();
        } else if out.exists() {
            fs::remove_file(&out).unwrap();
        }
        if replaces {
            let copied = Command::new("cp").args(["-r".as_ref(), older.as_os_str(), out.as_os_str()]).status();
            assert!(copied.unwrap().success());
        }
        let force: &[&str] = if replaces { &["--force"] } else { &[] };
        let ran = Ran::of(bench.command(&out, &[args, force].concat()).env("FEWBIT_CRASH_AT", n.to_string()));
        if ran.code == Some(0) {
            assert!(n > 25, "only {n} points");
            break;
        }
        assert_eq!(ran.code, None, "point {n}: {}", ran.stderr);
        // Under the final name there is what was there, or the whole new result; between two renames the old one
        // waits where it can be found.
        let replaced = partial.join("replaced");
        if out.exists() {
            let now = files(&out);
            assert!(now == whole || Some(&now) == old.as_ref(), "point {n}: something unfinished stands at {name}");
        } else if let Some(old) = &old {
            same_bytes(&files(&replaced), old, &format!("point {n}, the old result"));
        }
        assert!(partial.exists(), "point {n}");
        let resumed = bench.run(&out, &[args, &["--resume"]].concat());
        assert_eq!(resumed.code, Some(0), "point {n}: {}", resumed.stderr);
        same_bytes(&files(&out), &whole, &format!("point {n}"));
        bench.holds_only(&[name, &format!("old-{name}")]);
    }
}

#[test]
fn gptq_dies_everywhere() {
    dies_everywhere("out", &["--recipe", "gptq"], false);
}

#[test]
fn awq_in_place_of_an_older_result_dies_everywhere() {
    let search = ["--set", "transform.steps=2", "--set", "grid.steps=2", "--format", "fewbit"];
    dies_everywhere("out", &[&["--recipe", "awq"], &search[..]].concat(), true);
}

#[test]
fn rtn_in_place_of_an_older_gguf_file_dies_everywhere() {
    let blocks = ["--symmetric", "--set", "grid.scale=f16", "--format", "gguf"];
    dies_everywhere("out.gguf", &[&["--recipe", "rtn"], &blocks[..]].concat(), true);
}

#[test]
fn a_folder_with_a_gguf_file_dies_everywhere() {
    let blocks = ["--symmetric", "--set", "grid.scale=f16", "--format", "gguf"];
    dies_everywhere("out", &[&["--recipe", "gptq"], &blocks[..]].concat(), false);
}

#[test]
fn learning_dies_everywhere() {
    let few = ["--set", "learn.steps=3", "--set", "learn.batch=2"];
    dies_everywhere("out", &[&["--recipe", "efficientqat"], &few[..]].concat(), false);
}

#[test]
fn windows_die_everywhere() {
    let few = ["--set", "learn.steps=2", "--set", "learn.batch=2"];
    dies_everywhere_with("3", "out", &[&["--recipe", "cbq"], &few[..]].concat(), false);
}

#[test]
fn measurements_die_everywhere() {
    for sensitivity in ["allocate.sensitivity=kl", "allocate.sensitivity=fisher"] {
        let candidates = "allocate.candidates=[{bits=3},{bits=5}]";
        let set = ["--set", candidates, "--set", "allocate.bits=5", "--set", sensitivity];
        dies_everywhere("out", &[&["--recipe", "gptq"], &set[..]].concat(), false);
    }
}

#[test]
fn squared_gradients_die_everywhere() {
    dies_everywhere("out", &["--recipe", "gwq"], false);
}

#[test]
fn rows_of_two_widths_die_everywhere() {
    dies_everywhere("out", &["--recipe", "mixllm", "--set", "allocate.bits=5.5"], false);
}

/// Waits until the journal has the run's identity and so many blocks.
fn wait_for(partial: &Path, blocks: usize, child: &mut Child) {
    let lines = || fs::read_to_string(partial.join("journal.jsonl")).map_or(0, |t| t.lines().count());
    while lines() <= blocks {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be disturbed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_is_resumed_with_another_number_of_threads() {
    // Many blocks, so that most of the work lies after the signal however slow the machine is.
    let bench = Bench::new("40");
    let args = ["--recipe", "gptq", "--json"];
    let whole = bench.whole("whole", &args);
    for signal in ["-INT", "-TERM", "-KILL"] {
        let (out, partial) = (bench.path("out"), bench.path("out.partial"));
        let mut child = (bench.command(&out, &[&args[..], &["--threads", "1"]].concat()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(&partial, 2, &mut child);
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap());
        if signal != "-KILL" {
            assert_eq!(ran.code, Some(130), "{}", ran.stderr);
            assert!(ran.stderr.lines().last().unwrap().contains("`--resume` goes on"), "{}", ran.stderr);
            assert!(ran.json()["error"].as_str().unwrap().contains("out.partial"), "{}", ran.stdout);
        }
        assert!(!out.exists() && partial.exists());
        let resumed = bench.run(&out, &[&args[..], &["--resume", "--threads", "2"]].concat()).good();
        assert_eq!(resumed["blocks"].as_array().unwrap().len(), 40);
        same_bytes(&files(&out), &whole, signal);
        bench.holds_only(&["out", "whole"]);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_is_still_at_work_is_left_alone() {
    let bench = Bench::new("12");
    let args = ["--recipe", "gptq"];
    let whole = bench.whole("whole", &args);
    let out = bench.path("out");
    let mut child = bench.command(&out, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    };
    let lines = || fs::read_to_string(bench.path("out.partial/journal.jsonl")).map_or(0, |t| t.lines().count());
    while lines() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    signal("-STOP");
    for more in ["--resume", "--force"] {
        let ran = bench.run(&out, &[&args[..], &[more]].concat());
        // The other run has to end whatever is found.
        if ran.code != Some(2) {
            signal("-CONT");
        }
        ran.refused(&["out.partial", "another run", "wait for it"]);
    }
    signal("-CONT");
    assert!(child.wait().unwrap().success());
    same_bytes(&files(&out), &whole, "undisturbed");
    bench.holds_only(&["out", "whole"]);
}

/// A run that was ended within its second block.
fn begun(bench: &Bench, args: &[&str]) -> PathBuf {
    let out = bench.path("out");
    let ran = Ran::of(bench.command(&out, args).env("FEWBIT_CRASH_AT", "9"));
    assert_eq!(ran.code, None, "{}", ran.stderr);
    out
}

#[test]
fn a_run_is_resumed_as_it_was_begun() {
    let bench = Bench::new("2");
    let args = ["--recipe", "gptq", "--seed", "3", "--keep", "o_proj", "--override", "k_proj:bits=8", "--set"];
    let args = [&args[..], &["solve.damping=0.02"]].concat();
    let whole = bench.whole("whole", &args);
    let out = begun(&bench, &args);
    let before = files(&bench.path("out.partial/parts"));
    let changed = |from: &str, to: &str| args.iter().map(|a| if *a == from { to } else { a }.to_owned()).collect();
    let with = |more: &[&str]| args.iter().chain(more).map(|a| (*a).to_owned()).collect::<Vec<String>>();
    let other_recipe = bench.path("other.toml");
    let recipe = include_str!("../../../../recipes/gptq.toml");
    fs::write(&other_recipe, format!("{recipe}act_order = false\n")).unwrap();
    let cases: Vec<(Vec<String>, &str)> = vec![
        (changed("gptq", other_recipe.to_str().unwrap()), "the recipe differs"),
        (changed("3", "4"), "`--seed` was `3`, and is `4` now"),
        (changed("o_proj", "v_proj"), "`--keep` was `o_proj`, and is `v_proj` now"),
        (changed("k_proj:bits=8", "k_proj:bits=7"), "`--override` was `k_proj:bits=8`"),
        (changed("solve.damping=0.02", "solve.damping=0.03"), "solve.damping=0.02"),
        (with(&["--bits", "3"]), "grid.bits=3"),
        (with(&["--format", "fewbit"]), "`--format` was `compressed-tensors`, and is `fewbit` now"),
        (with(&["--cpu", "scalar"]), "arithmetic profile"),
    ];
    for (other, words) in cases {
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        bench.run(&out, &[&other[..], &["--resume"]].concat()).refused(&[
            "journal.jsonl",
            "belongs to another run",
            words,
        ]);
        bench.run(&out, &other).refused(&["out.partial", "holds an unfinished run", "--resume", "--force"]);
    }
    let resume = [&args[..], &["--resume"]].concat();
    let text = bench.path("text.txt");
    let said = fs::read(&text).unwrap();
    fs::write(&text, "A cat that sat on a mat. ".repeat(40)).unwrap();
    bench.run(&out, &resume).refused(&["the calibration text differs"]);
    fs::write(&text, said).unwrap();
    let model = Path::new(&bench.model);
    fs::rename(model, bench.path("first")).unwrap();
    small_model(model, "2", "1");
    bench.run(&out, &resume).refused(&["the model's files differ"]);
    fs::remove_dir_all(model).unwrap();
    fs::rename(bench.path("first"), model).unwrap();
    assert_eq!(bench.run(&out, &[&resume[..], &["--force"]].concat()).code, Some(2));

    same_bytes(&files(&bench.path("out.partial/parts")), &before, "what was finished");
    assert_eq!(bench.run(&out, &resume).code, Some(0));
    same_bytes(&files(&out), &whole, "resumed after all that");
}

#[test]
fn a_journal_that_was_cut_or_damaged_loses_no_more_than_its_end() {
    let bench = Bench::new("3");
    let args = ["--recipe", "gptq"];
    let whole = bench.whole("whole", &args);
    let journal = bench.path("out.partial/journal.jsonl");
    for damage in ["cut", "garbage", "empty"] {
        let out = begun(&bench, &args);
        let text = fs::read_to_string(&journal).unwrap();
        let damaged = match damage {
            "cut" => text[..text.len() - 20].to_owned(),
            "garbage" => format!("{text}{{\"block\": \u{1F600}\n"),
            _ => String::new(),
        };
        fs::write(&journal, damaged).unwrap();
        let ran = bench.run(&out, &[&args[..], &["--resume"]].concat());
        assert_eq!(ran.code, Some(0), "{damage}: {}", ran.stderr);
        same_bytes(&files(&out), &whole, damage);
        bench.holds_only(&["out", "whole"]);
        fs::remove_dir_all(&out).unwrap();
    }
}
