use fewbit_text::{Settings, Special, Tokenizer};

/// Texts with the edges of words, of characters and of control tokens.
const TEXTS: [&str; 4] = ["", "Hello, wörld!  <s>12 345</s>\n", "▁a\u{0}é€𝄞\u{fffd}", "the the  theatre"];

/// `tokenizer_config.json` (none if empty), then `tokenizer.json`.
pub fn tokenizer(data: &[u8]) {
    let Some(([settings], json)) = crate::texts(data) else { return };
    let settings = (!settings.is_empty()).then_some(settings.as_bytes());
    let Ok(settings) = Settings::from_json(settings, None) else { return };
    let _ = settings.chat_template(true);
    if let Ok(tokenizer) = Tokenizer::from_json(json, &settings) {
        use_up(&tokenizer);
    }
}

/// Encodes, decodes and writes with a tokenizer that was accepted.
pub(crate) fn use_up(tokenizer: &Tokenizer) {
    let most = tokenizer.max_id();
    for text in TEXTS {
        for special in [Special::Plain, Special::PlainWithBos, Special::Parsed, Special::ParsedWithBos] {
            let Ok(ids) = tokenizer.encode(text, special) else { continue };
            let _ = tokenizer.decode(&ids);
            let mut stream = tokenizer.stream(&[]);
            for id in ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
        if let Ok((ids, ends)) = tokenizer.encode_with_ends(text) {
            assert_eq!(ids.len(), ends.len());
            assert!(ends.is_sorted());
        }
    }
    for id in [0, 1, most / 2, most, most.saturating_add(1), u32::MAX] {
        let _ = (tokenizer.piece(id), tokenizer.decode(&[id]));
    }
    let _ = (tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos(), tokenizer.vocab_size());
    let _ = (tokenizer.to_json(), tokenizer.to_gguf());
}
