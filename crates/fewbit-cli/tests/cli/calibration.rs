//! The text that a recipe looks at.

use std::fs;

use crate::bench::{Bench, files};
use crate::fewbit;

#[test]
fn calibration_text_that_is_none_is_refused_and_a_short_one_is_said() {
    let bench = Bench::new("2");
    let file = |name: &str, bytes: &[u8]| {
        fs::write(bench.path(name), bytes).unwrap();
        bench.path(name).display().to_string()
    };
    let run = |name: &str, more: &[&str]| {
        let out = bench.path("out");
        let all = ["quantize", &bench.model, "--recipe", "gptq", "--group", "32", "--out", out.to_str().unwrap()];
        fewbit(&[&all[..], &["--calibration", name], more].concat())
    };
    let text = "{\"text\": \"Once upon a time there was a dog.\"}\n";
    for (name, bytes, words) in [
        ("empty.txt", &b""[..], &["empty.txt", "0 tokens"][..]),
        ("blank.txt", b"\n\n  \n", &["blank.txt", "0 tokens"]),
        ("latin1.txt", b"Il \xe9tait une fois", &["latin1.txt", "byte 0xE9 at offset 3", "UTF-8"]),
        (
            "short.txt",
            b"Once upon a time",
            &["short.txt", "calibration text has", "fewer than one sequence of 512", "--length"],
        ),
        ("broken.jsonl", format!("{text}{{\"text\": ").as_bytes(), &["broken.jsonl", "line 2", "not JSON"]),
        ("other.jsonl", format!("{text}{{\"content\": 3}}").as_bytes(), &["other.jsonl", "line 2", "`messages`"]),
    ] {
        run(&file(name, bytes), &[]).refused(words);
        fs::remove_file(bench.path(name)).unwrap();
        bench.holds_only(&[]);
    }
    run("/nowhere.txt", &[]).refused(&["/nowhere.txt", "check the path"]);
    run(bench.dir.path().to_str().unwrap(), &[]).refused(&[bench.dir.path().to_str().unwrap()]);
    bench.holds_only(&[]);

    // What was got is said where it is less than was asked for.
    let good = file("good.jsonl", text.repeat(9).as_bytes());
    let ran = run(&good, &["--samples", "50", "--length", "16", "--json"]);
    ran.good();
    assert!(ran.stderr.contains("sequences of 16 tokens, where 50 were asked for"), "{}", ran.stderr);
    let manifest: serde_json::Value = serde_json::from_slice(&files(&bench.path("out"))["fewbit.json"]).unwrap();
    let count = manifest["calibration"]["samples"].as_u64().unwrap();
    assert!(count > 2 && count < 50, "{manifest}");
    assert!(ran.stderr.contains(&format!("gives {count} sequences")), "{}", ran.stderr);
    assert_eq!(manifest["calibration"]["source"], "good.jsonl");
}

#[test]
fn conversations_are_rendered_by_the_model_s_template() {
    let dir = tempfile::tempdir().unwrap();
    let calibration = |name: &str, content: String| {
        let (file, out) = (dir.path().join(name), dir.path().join(format!("out-{name}")));
        fs::write(&file, content).unwrap();
        let args = ["quantize", "demo", "--recipe", "gptq", "--out", out.to_str().unwrap(), "--json"];
        let text = ["--samples", "2", "--length", "24", "--calibration", file.to_str().unwrap()];
        fewbit(&[&args[..], &text].concat()).good();
        let manifest: serde_json::Value = serde_json::from_slice(&files(&out)["fewbit.json"]).unwrap();
        manifest["calibration"]["sha256"].clone()
    };
    let messages = r#"[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Once upon a time"}]"#;
    let rendered = calibration("messages.jsonl", format!("{{\"messages\": {messages}}}\n").repeat(12));
    // A text that spells the control tokens is not a conversation: there they are plain text.
    let plain = calibration("text.jsonl", "{\"text\": \"<|user|>Hello<|assistant|>Once upon a time\"}\n".repeat(12));
    assert_ne!(rendered, plain);
    assert_eq!(rendered, calibration("again.jsonl", format!("{{\"messages\": {messages}}}\n").repeat(15)));
}
