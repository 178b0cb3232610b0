//! `fewbit bench`: what it says and that its figures fit together, not how large they are.

use serde_json::Value;

use crate::{command, fewbit};

#[track_caller]
fn number(object: &Value, key: &str) -> f64 {
    let v = object[key].as_f64().unwrap_or_else(|| panic!("{key}: {object}"));
    assert!(v > 0.0 && v.is_finite(), "{key}: {v}");
    v
}

#[track_caller]
fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs(), "{a} and {b}");
}

#[test]
fn every_figure_is_there_and_they_fit_together() {
    let args = ["bench", "demo", "--prompt", "24,8", "--generate", "6", "--batch", "1,3", "--depth", "0,40"];
    let object = fewbit(&[&args[..], &["--threads", "1,2", "--rounds", "2", "--json"]].concat()).good();
    let tokens = number(&object, "tokens_per_second");
    let prompt = number(&object, "prompt_tokens_per_second");
    let reads = number(&object, "read_bandwidth_bytes_per_second");
    close(number(&object, "bandwidth_share"), number(&object, "bytes_per_token") * tokens / reads);
    for key in ["matvec_bandwidth_share", "prompt_peak_share", "peak_rss_bytes", "load_seconds"] {
        // The model fits into caches: there is no limit to hold the shares of memory to, but they are no nonsense.
        number(&object, key);
    }
    assert!(number(&object, "prompt_peak_share") < 1.5 && number(&object, "matvec_bandwidth_share") < 100.0);
    assert!(number(&object, "first_token_seconds") > number(&object, "load_seconds"));
    assert_eq!(object["threads"], 1);
    assert!(object["cpu"].as_str().is_some_and(|c| !c.is_empty()));
    assert!(["small", "huge"].contains(&object["pages"].as_str().unwrap()));

    // Two prompts and two batches, at two depths, with two teams.
    let rows = object["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4 * 2 * 2);
    let of = |keys: &[(&str, Value)]| {
        let found = rows.iter().find(|r| keys.iter().all(|(k, v)| r[*k] == *v));
        found.unwrap_or_else(|| panic!("{keys:?}"))
    };
    let main = of(&[("work", "prompt".into())]);
    assert_eq!((&main["tokens"], &main["depth"]), (&24.into(), &0.into()));
    close(number(main, "tokens_per_second"), prompt);
    for row in rows {
        let seconds: Vec<f64> = row["seconds"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(seconds.len() == 2 && seconds.iter().all(|s| *s > 0.0), "{row}");
        let all = row["tokens"].as_f64().unwrap() * row["batch"].as_f64().unwrap();
        close(number(row, "tokens_per_second"), all / (seconds[0] + seconds[1]) * 2.0);
        number(row, "peak_share");
        assert_eq!(row["work"] == "prompt", row["bytes_per_token"].is_null(), "{row}");
    }
    let bytes = |depth: u32, batch: u32| {
        let row = of(&[("work", "generate".into()), ("depth", depth.into()), ("batch", batch.into())]);
        number(row, "bytes_per_token")
    };
    let cache = bytes(40, 1) - bytes(0, 1);
    assert!(cache > 0.0);
    close(bytes(40, 3) - bytes(0, 3), cache);
    // Sequences that advance together share the weights.
    assert!(bytes(0, 3) < 0.5 * bytes(0, 1));

    let machine = object["machine"].as_array().unwrap();
    assert_eq!(machine.iter().map(|m| m["threads"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for key in ["int8_peak_operations_per_second", "f32_peak_operations_per_second", "linears_bytes_per_second"] {
        machine.iter().for_each(|m| _ = number(m, key));
    }
}

#[test]
fn people_get_two_tables() {
    let ran = fewbit(&["bench", "demo", "--prompt", "0", "--generate", "4", "--rounds", "1", "--threads", "1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("loaded in ") && ran.stdout.contains("reads GB/s"), "{}", ran.stdout);
    let row = ran.stdout.lines().last().unwrap();
    assert!(row.contains("generate 4") && row.matches('%').count() == 2, "{}", ran.stdout);
}

#[test]
fn what_was_not_measured_is_null() {
    let object = fewbit(&["bench", "demo", "--prompt", "4", "--generate", "0", "--rounds", "1", "--json"]).good();
    for key in ["tokens_per_second", "bytes_per_token", "bandwidth_share"] {
        assert!(object[key].is_null(), "{key}");
    }
    number(&object, "prompt_tokens_per_second");
}

#[test]
fn caches_that_do_not_fit_are_refused_before_the_work() {
    let ran = fewbit(&["bench", "demo", "--depth", "1000000", "--batch", "1000"]);
    ran.refused(&["the caches would take", "`--depth`"]);
    assert!(command(&["bench", "/nowhere"]).output().unwrap().status.code() == Some(2));
}
