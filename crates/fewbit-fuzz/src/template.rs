use fewbit_text::{ChatTemplate, Message};
use serde_json::{Map, json};

/// A chat template, rendered with a conversation and a tool.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", " Hi <b>é "),
        Message::new("assistant", "Yes."),
        Message { role: "user".to_owned(), content: json!([{"type": "text", "text": "Go on"}]) },
    ];
    let tool = json!([{"type": "function", "function": {"name": "add", "description": "a & b", "parameters": {}}}]);
    let extra = Map::from_iter([("tools".to_owned(), tool)]);
    let _ = template.render(&messages, true, extra);
    let _ = template.render(&[], false, Map::new());
}
