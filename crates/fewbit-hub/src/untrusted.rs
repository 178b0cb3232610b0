//! Names that come from elsewhere, and what they may be.

/// Whether a name, joined to a folder, stays within it.
pub(crate) fn is_inside(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_odd = |c: char| c.is_control() || matches!(c, '\\' | ':');
        !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains(is_odd)
    };
    name.len() <= 1024 && name.split('/').all(is_part)
}

/// Whether a text can be the name of a file by itself: a commit, or what the hub calls a file's content.
pub(crate) fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 128 && !text.starts_with('.') && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out() {
        for name in ["config.json", "Q4_K_M/m-00001-of-00002.gguf", "a b..c", "..a"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "C:\\x", "C:x", "a\\..\\b", "a\nb"] {
            assert!(!is_inside(name), "{name:?}");
        }
        assert!(is_word("0123abcdef") && is_word("abc-1_2.x"));
        for text in ["", ".", "..", ".x", "a/b", "a b", "ä"] {
            assert!(!is_word(text), "{text}");
        }
    }
}
