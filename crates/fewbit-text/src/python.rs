//! Values as Python prints them: chat templates were written for a Python engine.

use std::fmt::{self, Write};

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use crate::template::MAX_OUTPUT_BYTES;

/// Nesting that a printed value may have.
const MAX_DEPTH: usize = 100;

/// A JSON value as the template engine holds it; objects keep the order of their keys.
pub(crate) fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => variables(map),
    }
}

/// The members of a JSON object.
pub(crate) fn variables(map: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v))))
}

/// The methods of Python's values: those of the engine's own collection, and the string methods that it lacks.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let triple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    match (value.as_str(), name) {
        (Some(s), "removeprefix") => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(s.strip_prefix(prefix).unwrap_or(s)))
        }
        (Some(s), "removesuffix") => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(s.strip_suffix(suffix).unwrap_or(s)))
        }
        (Some(s), "partition") => {
            let (by,): (&str,) = from_args(args)?;
            Ok(triple(s.split_once(by).map_or([s, "", ""], |(before, after)| [before, by, after])))
        }
        (Some(s), "rpartition") => {
            let (by,): (&str,) = from_args(args)?;
            Ok(triple(s.rsplit_once(by).map_or(["", "", s], |(before, after)| [before, by, after])))
        }
        (Some(s), "rsplit") if !args.is_empty() => {
            let (by, most): (&str, Option<usize>) = from_args(args)?;
            if by.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            // The engine is paid for the list once it is there, which may be too late.
            let parts = s.matches(by).count().min(most.unwrap_or(usize::MAX));
            charge(state, s.len().saturating_add(parts.saturating_mul(size_of::<Value>())))?;
            let mut parts: Vec<&str> = s.rsplitn(most.map_or(usize::MAX, |n| n.saturating_add(1)), by).collect();
            parts.reverse();
            Ok(parts.into_iter().map(Value::from).collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Takes a rendering's allowance of work for bytes that are made or looked at.
fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / 64) as u64)
}

/// Walking through a value takes longer than copying its text.
const WALK: usize = 4;

/// Options of Python's `json.dumps`.
#[derive(Clone, Debug, Default)]
pub(crate) struct JsonStyle {
    /// Spaces of each level; a single line where absent.
    pub(crate) indent: Option<usize>,
    /// What stands between items, and between key and value.
    pub(crate) separators: Option<(String, String)>,
    /// Whether keys are sorted.
    pub(crate) sorted: bool,
    /// Whether characters beyond ASCII are escaped.
    pub(crate) ascii: bool,
}

/// `json.dumps(value, ensure_ascii=style.ascii, indent=…, separators=…, sort_keys=…)`.
pub(crate) fn json(state: &State, value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let text = to_json(value, style)?;
    charge(state, WALK * text.len())?;
    Ok(text)
}

fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let item_separator = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (item_separator, ": "),
    };
    let mut out = String::new();
    Json { style, item, key }.write(value, 0, &mut out)?;
    Ok(out)
}

struct Json<'a> {
    style: &'a JsonStyle,
    item: &'a str,
    key: &'a str,
}

impl Json<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        check(depth, out)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value, "NaN", "Infinity")),
            ValueKind::String => {
                let text = value.as_str().unwrap_or_default();
                check(depth, text)?;
                self.string(text, out);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let mut group = Group::open('[', depth, out);
                for item in value.try_iter()? {
                    group.next(self, out);
                    self.write(&item, depth + 1, out)?;
                }
                group.close(self, ']', out);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sorted {
                    keys.sort();
                }
                let mut group = Group::open('{', depth, out);
                for key in keys {
                    group.next(self, out);
                    let mut text = String::new();
                    display(&key, &mut text)?;
                    self.string(&text, out);
                    out.push_str(self.key);
                    self.write(&value.get_item(&key)?, depth + 1, out)?;
                }
                group.close(self, '}', out);
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("a value of type {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(spaces) = self.style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', spaces * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.style.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A list or an object that is being written.
struct Group {
    depth: usize,
    is_empty: bool,
}

impl Group {
    fn open(bracket: char, depth: usize, out: &mut String) -> Self {
        out.push(bracket);
        Self { depth, is_empty: true }
    }

    fn next(&mut self, json: &Json<'_>, out: &mut String) {
        if !self.is_empty {
            out.push_str(json.item);
        }
        self.is_empty = false;
        json.line(self.depth + 1, out);
    }

    fn close(self, json: &Json<'_>, bracket: char, out: &mut String) {
        if !self.is_empty {
            json.line(self.depth, out);
        }
        out.push(bracket);
    }
}

/// `str(value)`.
pub(crate) fn text(state: &State, value: &Value) -> Result<String, Error> {
    let text = to_text(value)?;
    if value.kind() != ValueKind::String {
        charge(state, WALK * text.len())?;
    }
    Ok(text)
}

fn to_text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut out = String::new();
            repr(value, 0, &mut out)?;
            Ok(out)
        }
    }
}

/// `repr(value)`.
fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    check(depth, out)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value, "nan", "inf")),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            check(depth, text)?;
            repr_string(text, out);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, out)?;
            }
            if value.is_tuple() && value.len() == Some(1) {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => display(value, out)?,
    }
    Ok(())
}

/// The engine's own text of a value: few bytes may stand for a list that has itself in it many times over.
fn display(value: &Value, out: &mut String) -> Result<(), Error> {
    struct Bounded<'a>(&'a mut String);
    impl Write for Bounded<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            if self.0.len() + text.len() > MAX_OUTPUT_BYTES {
                return Err(fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }
    write!(Bounded(out), "{value}").map_err(|_| too_much())
}

fn repr_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as Python prints it: a float always shows that it is one, exponents have a sign and two digits.
fn number(value: &Value, nan: &str, infinity: &str) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else { return value.to_string() };
    if x.is_nan() {
        return nan.to_owned();
    }
    if x.is_infinite() {
        return format!("{}{infinity}", if x < 0.0 { "-" } else { "" });
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let scientific = format!("{x:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => scientific,
    }
}

/// Keeps what the engine does not see in bounds: nesting, and the size of a text before it is whole.
fn check(depth: usize, out: &str) -> Result<(), Error> {
    if depth > MAX_DEPTH || out.len() > MAX_OUTPUT_BYTES {
        return Err(too_much());
    }
    Ok(())
}

fn too_much() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a value is too deep or too long to be printed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        from_json(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn json_as_python_dumps_it() {
        let v = value(
            r#"{"b": [1, 2.0, 1e20, 1e-7], "a": {"é<>&'": "\u0001\n\"\u007f", "n": null, "t": true}, "e": [], "o": {}}"#,
        );
        let one_line = "{\"b\": [1, 2.0, 1e+20, 1e-07], \"a\": {\"é<>&'\": \"\\u0001\\n\\\"\u{7f}\", \"n\": null, \"t\": true}, \"e\": [], \"o\": {}}";
        assert_eq!(to_json(&v, &JsonStyle::default()).unwrap(), one_line);
        let style = JsonStyle { indent: Some(2), sorted: true, ascii: true, ..JsonStyle::default() };
        let want = "{\n  \"a\": {\n    \"n\": null,\n    \"t\": true,\n    \"\\u00e9<>&'\": \"\\u0001\\n\\\"\u{7f}\"\n  },\n  \"b\": [\n    1,\n    2.0,\n    1e+20,\n    1e-07\n  ],\n  \"e\": [],\n  \"o\": {}\n}";
        assert_eq!(to_json(&v, &style).unwrap(), want);
        let style = JsonStyle { separators: Some((",".to_owned(), ":".to_owned())), ..JsonStyle::default() };
        assert_eq!(to_json(&value(r#"[1, {"a": 2}]"#), &style).unwrap(), r#"[1,{"a":2}]"#);
    }

    #[test]
    fn text_as_python_prints_it() {
        assert_eq!(
            to_text(&value(r#"["it's", "a\"b", null, true, 0.5, {"k": "\n"}]"#)).unwrap(),
            r#"["it's", 'a"b', None, True, 0.5, {'k': '\n'}]"#
        );
        assert_eq!(to_text(&Value::from(1e16)).unwrap(), "1e+16");
        assert_eq!(to_text(&Value::UNDEFINED).unwrap(), "");
    }
}
