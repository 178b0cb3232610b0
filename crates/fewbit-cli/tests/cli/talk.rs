//! Texts as they are made: stops, limits, sampling, conversations.

use serde_json::Value;

use crate::{fewbit, fewbit_reading, shared};

fn stories() -> Option<String> {
    shared("models/stories260K").map(|p| p.display().to_string())
}

fn greedy(model: &str, prompt: &str, more: &[&str]) -> Value {
    let args = ["run", model, "--raw", "--prompt", prompt, "--temperature", "0", "--json"];
    fewbit(&[&args[..], more].concat()).good()
}

#[test]
fn the_text_continues_the_prompt() {
    let Some(model) = stories() else { return };
    let text = greedy(&model, "Once upon a time", &["--max-tokens", "20"])["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with(", there was a little girl named Lily. She"), "{text}");
    let text = greedy(&model, "Once upon a", &["--max-tokens", "3"])["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with(" time"), "{text}");
    // What is streamed is what is reported, and a line's end.
    let streamed = fewbit(&["run", &model, "--prompt", "Once upon a time", "--temperature", "0", "--max-tokens", "40"]);
    let whole = greedy(&model, "Once upon a time", &["--max-tokens", "40"]);
    assert_eq!(streamed.stdout, format!("{}\n", whole["text"].as_str().unwrap()));
}

#[test]
fn four_spaces_come_back_as_four() {
    let Some(model) = stories() else { return };
    let pieces = fewbit(&["tokenize", &model, "    if x:", "--json"]).good()["pieces"].clone();
    let text: String = pieces.as_array().unwrap().iter().skip(1).map(|p| p.as_str().unwrap()).collect();
    assert_eq!(text.replace('▁', " "), "     if x:");
}

#[test]
fn sampling_has_its_edges() {
    let Some(model) = stories() else { return };
    let args = ["run", &model, "--prompt", "Once", "--max-tokens", "8", "--json"];
    let run = |more: &[&str]| fewbit(&[&args[..], more].concat());
    let best = run(&["--temperature", "0"]).good()["ids"].clone();
    for same in [
        &["--temperature", "1e-9"][..],
        &["--temperature", "2", "--top-k", "1"],
        &["--temperature", "1", "--top-p", "0"],
        &["--temperature", "1", "--min-p", "1"],
    ] {
        assert_eq!(run(same).good()["ids"], best, "{same:?}");
    }
    let free = |more: &[&str]| run(&[&["--temperature", "1", "--seed", "42"], more].concat()).good()["ids"].clone();
    assert_eq!(free(&["--top-k", "0"]), free(&["--top-k", "-1"]));
    assert_eq!(free(&[]), free(&[]));
    assert_ne!(free(&[]), run(&["--temperature", "1", "--seed", "43"]).good()["ids"]);
    for (option, value, name) in [
        ("--temperature", "-1", "temperature"),
        ("--temperature", "nan", "temperature"),
        ("--top-p", "-0.1", "top_p"),
        ("--top-p", "1.5", "top_p"),
        ("--min-p", "2", "min_p"),
        ("--top-k", "-2", "top_k"),
        ("--repetition-penalty", "0", "repetition_penalty"),
    ] {
        run(&[option, value]).refused(&[&format!("`{name}` is")]);
    }
    fewbit(&["run", &model, "--prompt", "Once", "--max-tokens", "-2"]).refused(&["`max_tokens` is -2"]);
}

#[test]
fn the_context_is_the_limit_and_said_before() {
    let Some(model) = stories() else { return };
    let ran =
        fewbit(&["run", &model, "--prompt", "Once upon a time", "--temperature", "0", "--context", "40", "--json"]);
    let object = ran.good();
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(object["ids"].as_array().unwrap().len(), 35);
    assert!(ran.stderr.contains("1 of the context's 40 positions are left"), "{}", ran.stderr);
    let ran = fewbit(&["run", &model, "--prompt", "Once upon a time", "--context", "3"]);
    ran.refused(&["5 tokens", "holds 3", "--context"]);
    let ran = fewbit(&["run", &model, "--prompt", "Once", "--context", "100000", "--max-tokens", "1"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("made for 512 positions"), "{}", ran.stderr);
    assert_eq!(greedy(&model, "Once", &["--max-tokens", "0"])["text"], "");
}

#[test]
fn a_conversation_is_remembered_and_forgotten() {
    let ran = fewbit_reading(
        &["chat", "demo", "--temperature", "0", "--max-tokens", "12", "--json"],
        "Hello\n\nGo on\n/what\n",
    );
    let object = ran.good();
    let roles: Vec<&str> = object["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert!(ran.stderr.contains("`/what` is unknown"), "{}", ran.stderr);
    let fresh =
        fewbit_reading(&["chat", "demo", "--temperature", "0", "--max-tokens", "12", "--json"], "Go on\n").good();
    let reset = fewbit_reading(
        &["chat", "demo", "--temperature", "0", "--max-tokens", "12", "--json"],
        "Hello\n/reset\nGo on\n/exit\nnever read\n",
    )
    .good();
    assert_eq!(reset["ids"], fresh["ids"]);
    assert_eq!(reset["messages"].as_array().unwrap().len(), 2);
    // The second line runs only what the first did not.
    assert!(object["prompt_tokens"].as_u64() < Some(10), "{object}");
}

#[test]
fn a_conversation_that_no_longer_fits_says_how_to_go_on() {
    let ran = fewbit_reading(
        &["chat", "demo", "--temperature", "0", "--context", "24"],
        "Tell me a story about a dog and a cat\nAnd then what happened to the dog and the cat\n/reset\nHi\n",
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("/reset, a shorter line, or start again with a larger --context"), "{}", ran.stderr);
}

#[test]
fn a_context_that_cannot_be_raised_is_not_to_be() {
    let long = "once upon a time there was a dog ".repeat(400);
    let run = |more: &[&str]| fewbit(&[&["run", "demo", "--raw", "--prompt", &long], more].concat());
    run(&["--context", "16"]).refused(&["the context holds 16", "raise `--context` up to "]);
    let whole = run(&[]);
    whole.refused(&["shorten it: the model was made for no longer ones"]);
    assert!(!whole.stderr.contains("--context"), "{}", whole.stderr);
}

#[test]
fn a_conversation_that_fails_says_why_in_its_object() {
    let dir = crate::damage::with_nan("model.norm.weight", 0);
    let ran = fewbit_reading(&["chat", dir.path().to_str().unwrap(), "--json"], "Hello\n");
    ran.refused(&["not finite"]);
    let object = ran.json();
    assert!(object["error"].as_str().unwrap().contains("not finite"), "{object}");
    assert_eq!(object["messages"][0]["content"], "Hello");
}

#[test]
fn a_model_without_template_is_not_for_chat() {
    let Some(model) = stories() else { return };
    fewbit(&["chat", &model]).refused(&["no chat template", "--raw"]);
}

/// On the integer kernels, with a draft model that is worse, and from the text itself.
#[test]
fn drafts_change_no_greedy_text() {
    let folder = tempfile::tempdir().unwrap();
    let quantized = |bits: &str| {
        let out = folder.path().join(bits).display().to_string();
        fewbit(&["quantize", "demo", "--recipe", "rtn", "--bits", bits, "--out", &out, "--json"]).good();
        out
    };
    let (target, draft) = (quantized("4"), quantized("3"));
    let more = ["--max-tokens", "80", "--repetition-penalty", "1.1"];
    let want = greedy(&target, "Once upon a time", &more);
    assert!(want["drafted"].is_null() && want["accepted"].is_null());
    for draft in ["ngram", &draft, &target] {
        for tokens in ["1", "8"] {
            let with = ["--draft", draft, "--draft-tokens", tokens];
            let got = greedy(&target, "Once upon a time", &[&more[..], &with].concat());
            assert_eq!((&got["ids"], &got["text"]), (&want["ids"], &want["text"]), "{draft} {tokens}");
            assert!(got["accepted"].as_u64() <= got["drafted"].as_u64(), "{got}");
        }
    }
    let object = fewbit_reading(
        &["chat", "demo", "--draft", "ngram", "--temperature", "0", "--max-tokens", "12", "--json"],
        "Hello\nGo on\n",
    );
    let plain =
        fewbit_reading(&["chat", "demo", "--temperature", "0", "--max-tokens", "12", "--json"], "Hello\nGo on\n");
    assert_eq!(object.good()["messages"], plain.good()["messages"]);
}

#[test]
fn a_draft_must_know_the_same_tokens() {
    let args = ["run", "demo", "--prompt", "Once", "--max-tokens", "4"];
    let alone = fewbit(&[&args[..], &["--draft-tokens", "4"]].concat());
    assert!(alone.code == Some(2) && alone.stderr.contains("--draft <MODEL|ngram>"), "{}", alone.stderr);
    fewbit(&[&args[..], &["--draft", "nowhere"]].concat()).refused(&["nowhere"]);
    if let Some(stories) = stories() {
        fewbit(&[&args[..], &["--draft", &stories]].concat()).refused(&["stories260K", "the draft model", "ngram"]);
    }
}
