//! Prompt lookup (Saxena 2023): texts repeat names, code and quotations.

/// Fewer tokens alike say little about the next one.
const LEAST: usize = 2;

/// More tokens alike say no more.
const MOST: usize = 8;

/// Writes `count` tokens that followed the longest end of `text` which occurred before, the latest of these; nothing if
/// there is none. Where they reach the end of the text, they go on with themselves.
pub(crate) fn continue_text(text: &[u32], count: usize, out: &mut Vec<u32>) {
    let Some(from) = after_latest_match(text) else { return };
    for i in 0..count {
        out.push(text.get(from + i).copied().unwrap_or_else(|| out[from + i - text.len()]));
    }
}

/// The position after the latest of the longest matches.
fn after_latest_match(text: &[u32]) -> Option<usize> {
    let (mut longest, mut found) = (LEAST - 1, None);
    for end in (LEAST..text.len()).rev() {
        let alike = text[..end].iter().rev().zip(text.iter().rev()).take(MOST).take_while(|(a, b)| a == b).count();
        if alike > longest {
            (longest, found) = (alike, Some(end));
            if alike == MOST {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &[u32], count: usize) -> Vec<u32> {
        let mut out = Vec::new();
        continue_text(text, count, &mut out);
        out
    }

    #[test]
    fn the_longest_match_goes_before_the_latest() {
        assert_eq!(guess(&[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2), [9, 2]);
        assert_eq!(guess(&[5, 2, 3, 9, 6, 2, 3, 8, 1, 2, 3], 2), [8, 1]);
    }

    #[test]
    fn one_token_alike_is_no_match() {
        assert!(guess(&[1, 2, 3, 4, 3], 4).is_empty());
        assert!(guess(&[], 4).is_empty());
        assert!(guess(&[1], 4).is_empty());
        assert!(guess(&[1, 1], 4).is_empty());
    }

    #[test]
    fn periods_go_on() {
        assert_eq!(guess(&[7, 7, 7], 5), [7; 5]);
        assert_eq!(guess(&[1, 2, 3, 1, 2, 3, 1, 2], 7), [3, 1, 2, 3, 1, 2, 3]);
    }
}
