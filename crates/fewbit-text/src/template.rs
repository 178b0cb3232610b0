use std::sync::Arc;

use fewbit_format::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, State, Value};
use serde_json::{Map, json};

use crate::{clock, python};

/// Work that one rendering may do: instructions, and one unit for every 64 bytes made (128 MB).
const FUEL: u64 = 2_000_000;
/// Stack of a rendering: what the allowance of work can nest is walked through by recursion. Pages that are not touched
/// take no memory.
const STACK_BYTES: usize = 512 << 20;
/// Nesting of blocks and macros.
const MAX_RECURSION: usize = 200;
/// Longest text that a template may make.
pub(crate) const MAX_OUTPUT_BYTES: usize = 10 << 20;
const MAX_SOURCE_BYTES: usize = 4 << 20;
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the template knows besides.
    pub role: String,
    /// A string, or a list of parts such as `{"type": "text", "text": "…"}`.
    pub content: serde_json::Value,
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: serde_json::Value::String(content.into()) }
    }
}

/// A model's chat template: Jinja as `transformers` runs it.
///
/// Blocks are trimmed, `break` and `continue`, `raise_exception`, `strftime_now` (in UTC), `tojson` as Python's
/// `json.dumps`, `{% generation %}` and the methods of Python's strings, lists and dictionaries are there. A template
/// comes from a stranger: its work, its nesting and its output are bounded.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The line and the reason where the source is not a template.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::input(format!("is longer than {MAX_SOURCE_BYTES} bytes")).place("the chat template"));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::internal(e.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(|out, state, value| {
            out.write_str(&python::text(state, value)?).map_err(minijinja::Error::from)
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| clock::strftime(clock::now(), format));
        environment.add_filter("tojson", tojson);
        // The engine's own indents: of what is nested deep that takes the cube of its depth.
        environment.add_filter("pprint", |state: &State, value: &Value| python::text(state, value));
        environment.remove_global("debug");
        environment.add_template_owned(NAME, without_generation(source)).map_err(|e| sentence(&e))?;
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(Self { environment: Arc::new(environment), bos_token, eos_token })
    }

    /// Renders a conversation; `extra` holds further variables, such as `tools`, and wins over the usual ones.
    ///
    /// # Errors
    /// One sentence with the template's own message where it raises one, and where a bound is passed.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: Map<String, serde_json::Value>,
    ) -> Result<String> {
        let messages: Vec<_> = messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        self.render_messages(messages.into(), add_generation_prompt, extra)
    }

    /// As [`Self::render`], for messages that have more than role and content.
    pub fn render_messages(
        &self,
        messages: serde_json::Value,
        add_generation_prompt: bool,
        extra: Map<String, serde_json::Value>,
    ) -> Result<String> {
        let mut variables = Map::new();
        variables.insert("messages".to_owned(), messages);
        variables.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        variables.insert("bos_token".to_owned(), self.bos_token.clone().into());
        variables.insert("eos_token".to_owned(), self.eos_token.clone().into());
        variables.extend(extra);
        // Its own thread, for its stack: the engine lets go of values by recursion.
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            let rendered = builder.spawn_scoped(scope, || self.render_variables(&variables));
            let rendered = rendered.map_err(|e| Error::input(format!("no thread for a chat template: {e}")))?;
            rendered.join().map_err(|_| Error::internal("the template engine panicked").place("the chat template"))?
        })
    }

    fn render_variables(&self, variables: &Map<String, serde_json::Value>) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|e| sentence(&e))?;
        let mut out = Bounded::default();
        let rendered = template.render_captured_to(python::variables(variables), &mut out);
        if out.full {
            return Err(Error::input(format!("makes more than {MAX_OUTPUT_BYTES} bytes")).place("the chat template"));
        }
        rendered.map_err(|e| sentence(&e))?;
        String::from_utf8(out.bytes).map_err(|_| Error::internal("a chat template made bytes that are no text"))
    }
}

/// Output that refuses to grow beyond its bound.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.full = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Marks the message of `raise_exception`, so that it is told from the engine's own.
const RAISED: &str = "raised: ";

fn raise_exception(message: &str) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

#[expect(clippy::needless_pass_by_value, reason = "the engine hands options over by value")]
fn tojson(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> std::result::Result<Value, minijinja::Error> {
    let indent = match indent {
        Some(n) => Some(n),
        None => options.get::<Option<usize>>("indent")?,
    };
    if indent.is_some_and(|n| n > 64) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson indents by at most 64 spaces"));
    }
    let style = python::JsonStyle {
        indent,
        separators: separators(options.get("separators")?)?,
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(Value::from_safe_string(python::json(state, value, &style)?))
}

fn separators(value: Option<Value>) -> std::result::Result<Option<(String, String)>, minijinja::Error> {
    let Some(value) = value.filter(|v| !v.is_none()) else { return Ok(None) };
    let parts: Vec<String> = value.try_iter()?.map(|v| v.to_string()).collect();
    match <[String; 2]>::try_from(parts) {
        Ok([item, key]) => Ok(Some((item, key))),
        Err(_) => Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson takes two separators")),
    }
}

fn sentence(error: &minijinja::Error) -> Error {
    let mut cause = error;
    while let Some(inner) = std::error::Error::source(cause).and_then(|s| s.downcast_ref::<minijinja::Error>()) {
        cause = inner;
    }
    let detail = cause.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(RAISED) {
        return Error::input(message).place("the chat template refuses the conversation");
    }
    if cause.kind() == ErrorKind::OutOfFuel {
        return Error::input("does not come to an end (its allowance of work is used up)").place("the chat template");
    }
    let line = cause.line().map(|n| format!(" in line {n}")).unwrap_or_default();
    let detail = if detail.is_empty() { cause.kind().to_string() } else { format!("{}: {detail}", cause.kind()) };
    Error::input(format!("fails{line} ({detail})"))
        .place("the chat template")
        .hint("put another into `chat_template.jinja` beside the model")
}

/// Turns `{% generation %}`, which only marks the assistant's tokens for training, into a block that does nothing.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            continue;
        };
        let inner = &tag[..end];
        let name = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match name {
            "generation" => out.push_str(&inner.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inner.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(inner),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(messages, true, Map::new())
    }

    #[test]
    fn blocks_are_trimmed_and_python_is_understood() {
        let source = "{%- for m in messages %}\n    {% if loop.index > 2 %}{% break %}{% endif %}\n{{ m.role.upper() }}: {{ m['content'].strip().split(' ')[0] }}\n{% endfor %}\n{{ none }} {{ true }} {{ 1.0 }} {{ ['a', none] }} {{ missing }}{{ bos_token }}{% generation %}\nx{% endgeneration %}\n{{ messages[::-1][0].content.startswith('a') }}{{ 'a b c'.rsplit(' ', 1) }}{{ 'k=v=w'.partition('=') }}{{ 'xay'.removeprefix('x').removesuffix('z') }}";
        let m = |role, content| Message::new(role, content);
        let got = render(source, &[m("user", " a b "), m("bot", "c"), m("user", "a")]).unwrap();
        assert_eq!(got, "USER: a\nBOT: c\nNone True 1.0 ['a', None] <s>xTrue['a b', 'c']('k', '=', 'v=w')ay");
    }

    #[test]
    fn a_template_says_why_it_refuses() {
        let e =
            render("{{ raise_exception('roles must alternate, got ' ~ messages[0].role) }}", &[Message::new("x", "y")]);
        assert_eq!(
            e.unwrap_err().to_string(),
            "the chat template refuses the conversation: roles must alternate, got x"
        );
        let e = render("{% for x in y %}", &[]).unwrap_err().to_string();
        assert!(e.starts_with("the chat template: fails in line 1"), "{e}");
        let e = render("\n{{ messages[0].a.b }}", &[Message::new("x", "y")]).unwrap_err().to_string();
        assert!(e.starts_with("the chat template: fails in line 2"), "{e}");
    }

    #[test]
    fn a_hostile_template_comes_to_an_end() {
        for source in [
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(100) %}{% set ns.x = [ns.x, ns.x]|tojson %}{% endfor %}",
            "{{ 'a' * 100000000000 }}",
            "{% for a in range(90000) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
        ] {
            let e = render(source, &[]).unwrap_err().to_string();
            assert!(e.starts_with("the chat template: "), "{e}");
        }
        let deep = format!("{}x{}", "{% if true %}".repeat(5000), "{% endif %}".repeat(5000));
        assert!(render(&deep, &[]).is_err());
        assert!(render(&format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)), &[]).is_err());
    }

    /// What can be nested within the allowance of work is let go of, compared, hashed and printed by recursion.
    #[test]
    fn values_as_deep_as_the_allowance_of_work_harm_nobody() {
        let nest = |inner: &str, then: &str| {
            format!(
                "{{% set ns = namespace(x=[]) %}}{{% for a in range(1000) %}}{{% for b in range(1000) %}}{{% set ns.x = {inner} %}}{{% endfor %}}{{% if a == 90 %}}{then}{{% endif %}}{{% endfor %}}"
            )
        };
        for (inner, then) in [
            ("[ns.x]", ""),
            ("{'a': ns.x}", "{% set y = ns.x == {'a': ns.x} %}"),
            ("(ns.x,)", "{% set y = {ns.x: 1} %}"),
            ("namespace(x=ns.x)", "{% set y = ns.x ~ '' %}"),
            ("[ns.x]", "{{ ns.x | pprint }}"),
            ("[ns.x, ns.x]", "{{ ns }}"),
            ("[ns.x, ns.x]", "{{ ns.x | batch(1) | first | tojson }}"),
        ] {
            let e = render(&nest(inner, then), &[]).unwrap_err().to_string();
            assert!(e.starts_with("the chat template: "), "{inner} {then}: {e}");
        }
    }

    /// Methods of Python's values pay for what they make before they make it.
    #[test]
    fn lists_longer_than_the_allowance_of_work_are_not_made() {
        let long =
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(20) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
        for then in
            ["{{ ns.x.rsplit('a') | length }}", "{% for i in range(9999) %}{% set y = ns.x.rsplit('b') %}{% endfor %}"]
        {
            let e = render(&format!("{long}{then}"), &[]).unwrap_err().to_string();
            assert!(e.contains("does not come to an end"), "{e}");
        }
        assert!(render("{{ 'a'.rsplit('') }}", &[]).unwrap_err().to_string().contains("empty separator"));
    }

    /// A template with what engines other than Python's lack; its text is what jinja2 3.1.6 makes of it.
    #[test]
    fn macros_namespaces_loops_and_parts() {
        let source = r"{%- macro block(role, text) -%}
<{{ role }}>{{ text | trim }}</{{ role }}>
{%- endmacro -%}
{{- bos_token -}}
{%- set ns = namespace(count=0) -%}
{%- if messages[0]['role'] == 'system' -%}
{{ block('sys', messages[0]['content'] ~ ' Today: ' ~ strftime_now('%d %b %Y')) }}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate, got ' ~ m['role']) }}{%- endif -%}
{%- if m.role == 'assistant' -%}{% generation %}{{ block('bot', m.content) }}{% endgeneration %}
{%- elif m.content is string -%}{{ block('usr', m.content) }}
{%- else -%}{%- for part in m.content if part.type == 'text' -%}{{ block('usr', part.text) }}{%- endfor -%}
{%- endif -%}
{%- set ns.count = ns.count + 1 -%}
{%- if ns.count > 8 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- if tools is defined and tools -%}
<tools>{{ tools | tojson(indent=2) }}</tools>
{%- endif -%}
{%- if add_generation_prompt -%}<bot>{%- endif -%}
";
        let messages = [
            Message::new("system", "  Be kind. "),
            Message::new("user", "Hi é <b>"),
            Message::new("assistant", "Yes."),
            Message { role: "user".to_owned(), content: json!([{"type": "text", "text": "Go on"}]) },
        ];
        let t = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        let today = clock::strftime(clock::now(), "%d %b %Y");
        let want = format!("<s><sys>Be kind.  Today: {today}</sys><usr>Hi é <b></usr><bot>Yes.</bot><usr>Go on</usr>");
        assert_eq!(t.render(&messages, true, Map::new()).unwrap(), format!("{want}<bot>"));
        let mut extra = Map::new();
        extra.insert(
            "tools".to_owned(),
            json!([{"type": "function", "function": {"name": "add", "description": "a & b"}}]),
        );
        let tools = "<tools>[\n  {\n    \"type\": \"function\",\n    \"function\": {\n      \"name\": \"add\",\n      \"description\": \"a & b\"\n    }\n  }\n]</tools>";
        assert_eq!(t.render(&messages, true, extra).unwrap(), format!("{want}{tools}<bot>"));
        let two = [Message::new("user", "a"), Message::new("user", "b")];
        let e = t.render(&two, true, Map::new()).unwrap_err().to_string();
        assert_eq!(e, "the chat template refuses the conversation: roles must alternate, got user");
    }

    #[test]
    fn parts_and_tools_reach_the_template() {
        let parts = Message { role: "user".to_owned(), content: json!([{"type": "text", "text": "hé"}]) };
        let mut extra = Map::new();
        extra.insert("tools".to_owned(), json!([{"b": 1, "a": "<"}]));
        let t =
            ChatTemplate::new("{% for p in messages[0].content %}{{ p.text }}{% endfor %}{{ tools|tojson }}", "", "")
                .unwrap();
        assert_eq!(t.render(&[parts], false, extra).unwrap(), "hé[{\"b\": 1, \"a\": \"<\"}]");
    }
}
