//! How much a `tokenizer.json` lets text grow: a few lines of it can make gigabytes of one letter, as soon as it is tried.

use fewbit_format::{Error, Result};
use serde_json::Value;

/// How many times as long normalizers may make a text; the known ones stay below a hundred.
const MOST_TIMES: f64 = 65_536.0;
/// What a table of characters (`Precompiled`) counts: the longest entry of NFKC's makes 18 characters of one.
const TABLE_TIMES: f64 = 32.0;
/// Tokens that may stand around a text.
const MOST_AROUND: usize = 1024;

/// Refuses a normalizer and a post-processor (as JSON, null where there is none) that make too much of a text.
pub(crate) fn check(normalizer: &Value, post_processor: &Value) -> Result<()> {
    let times = times(normalizer);
    if times > MOST_TIMES {
        return Err(Error::input(format!("its normalizer can make a text {times:.0} times as long")));
    }
    let around = around(post_processor);
    if around > MOST_AROUND {
        return Err(Error::input(format!("its post-processor puts {around} tokens around each text")));
    }
    Ok(())
}

fn times(normalizer: &Value) -> f64 {
    let list = normalizer["normalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let content = normalizer["content"].as_str().unwrap_or_default().len() as f64;
    match normalizer["type"].as_str() {
        Some("Sequence") => list.iter().map(times).product(),
        Some("Precompiled") => TABLE_TIMES,
        Some("Replace") => match normalizer["pattern"]["String"].as_str() {
            Some(pattern) if !pattern.is_empty() => (content / pattern.len() as f64).max(1.0),
            // Between any two characters there may be a match.
            _ => 1.0 + content,
        },
        _ => 1.0,
    }
}

fn around(processor: &Value) -> usize {
    let list = |key: &str| processor[key].as_array().map(Vec::as_slice).unwrap_or_default();
    match processor["type"].as_str() {
        Some("Sequence") => list("processors").iter().map(around).sum(),
        Some("TemplateProcessing") => {
            let ids = |piece: &Value| {
                let id = piece["SpecialToken"]["id"].as_str()?;
                processor["special_tokens"][id]["ids"].as_array().map(Vec::len)
            };
            list("single").iter().filter_map(ids).sum()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn growth_is_the_product_of_all_steps() {
        let replace =
            |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
        let escape = replace(json!({"String": " "}), "▁");
        let usual = sequence(vec![json!({"type": "Prepend", "prepend": "▁"}), escape, json!({"type": "Precompiled"})]);
        assert_eq!(times(&usual), 96.0);
        let double = replace(json!({"String": "a"}), "aa");
        let nested = sequence(vec![sequence(vec![double.clone(); 9]), sequence(vec![double; 8])]);
        let e = check(&nested, &Value::Null).unwrap_err().to_string();
        assert_eq!(e, "its normalizer can make a text 131072 times as long");
        assert_eq!(times(&replace(json!({"Regex": ""}), "ab")), 3.0);
        assert_eq!(times(&replace(json!({"String": "abcd"}), "ab")), 1.0);
        assert!(check(&Value::Null, &Value::Null).is_ok());
    }

    #[test]
    fn tokens_around_a_text_are_counted_as_often_as_they_stand_there() {
        let special = json!({"x": {"id": "x", "ids": vec![0; 100], "tokens": vec!["x"; 100]}});
        let template = |times: usize| {
            let single = vec![json!({"SpecialToken": {"id": "x", "type_id": 0}}); times];
            json!({"type": "TemplateProcessing", "single": single, "special_tokens": special})
        };
        assert!(check(&Value::Null, &template(10)).is_ok());
        let twice = json!({"type": "Sequence", "processors": [template(10), template(1)]});
        let e = check(&Value::Null, &twice).unwrap_err().to_string();
        assert_eq!(e, "its post-processor puts 1100 tokens around each text");
    }
}
