use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainer, Merges, Vocab};
use tokenizers::{Model, Token};

use crate::pieces::byte_of;

/// SentencePiece's BPE: of all neighbours whose concatenation is a piece, those with the best score merge first,
/// the leftmost of equals; what is no piece becomes bytes.
///
/// The tokenizers library ranks *pairs*; scores rank *results*, and two results may have one score. So this model is
/// not expressed in that library's BPE but stands beside it, behind the same trait.
#[derive(Debug)]
pub(crate) struct ScoreMerges {
    tokens: Vec<String>,
    scores: Vec<f32>,
    /// Whether ordinary text may become the token: control tokens, the unknown token and bytes never are spelled.
    from_text: Vec<bool>,
    ids: HashMap<String, u32>,
    byte_ids: Vec<Option<u32>>,
    unk: Option<u32>,
}

/// A stretch of text in a doubly linked list; merged away when its length is 0.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
    id: u32,
}

/// End of the list, and id of a stretch that is no piece.
const NONE: u32 = u32::MAX;

/// A possible merge; the greatest is done first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    score: ByScore,
    left: Reverse<u32>,
    right: u32,
    len: u32,
    id: u32,
}

#[derive(PartialEq)]
struct ByScore(f32);

impl Eq for ByScore {}

impl Ord for ByScore {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for ByScore {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl ScoreMerges {
    /// A model over `tokens`, each with its score and whether ordinary text may become it; of equal tokens the first
    /// counts.
    pub(crate) fn new(tokens: Vec<String>, scores: Vec<f32>, from_text: Vec<bool>, unk: Option<u32>) -> Self {
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut byte_ids = vec![None; 256];
        for (id, token) in tokens.iter().enumerate() {
            ids.entry(token.clone()).or_insert(id as u32);
            if let (Some(byte), false) = (byte_of(token), from_text[id]) {
                byte_ids[byte as usize].get_or_insert(id as u32);
            }
        }
        Self { tokens, scores, from_text, ids, byte_ids, unk }
    }

    /// The score of every token, by id.
    pub(crate) fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// The id of a piece that ordinary text may become.
    fn piece(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied().filter(|&id| self.from_text[id as usize])
    }

    /// The ids of `text`, which is at most 4 GiB long.
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut symbols = self.characters(text);
        let mut queue: BinaryHeap<Merge> =
            (1..symbols.len() as u32).filter_map(|right| self.merge(text, &symbols, right - 1, right)).collect();
        while let Some(m) = queue.pop() {
            let (left, right) = (symbols[m.left.0 as usize], symbols[m.right as usize]);
            // One of the two has merged with another since.
            if left.len == 0 || right.len == 0 || left.len + right.len != m.len {
                continue;
            }
            symbols[m.left.0 as usize] = Symbol { len: m.len, next: right.next, id: m.id, ..left };
            symbols[m.right as usize].len = 0;
            if right.next != NONE {
                symbols[right.next as usize].prev = m.left.0;
                queue.extend(self.merge(text, &symbols, m.left.0, right.next));
            }
            if left.prev != NONE {
                queue.extend(self.merge(text, &symbols, left.prev, m.left.0));
            }
        }
        let mut ids = Vec::with_capacity(symbols.len() / 3);
        let mut unknown_before = false;
        for s in symbols.iter().filter(|s| s.len > 0) {
            unknown_before =
                self.write(&text[s.start as usize..(s.start + s.len) as usize], s.id, unknown_before, &mut ids);
        }
        ids
    }

    fn characters(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| {
                let len = c.len_utf8();
                let id = self.piece(&text[start..start + len]).unwrap_or(NONE);
                let prev = (i as u32).checked_sub(1).unwrap_or(NONE);
                Symbol { start: start as u32, len: len as u32, prev, next: i as u32 + 1, id }
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    fn merge(&self, text: &str, symbols: &[Symbol], left: u32, right: u32) -> Option<Merge> {
        let (a, b) = (symbols[left as usize], symbols[right as usize]);
        let len = a.len + b.len;
        let id = self.piece(&text[a.start as usize..(a.start + len) as usize])?;
        Some(Merge { score: ByScore(self.scores[id as usize]), left: Reverse(left), right, len, id })
    }

    /// Writes a piece, or its bytes, or one unknown token for a run of what has neither; returns whether it was that.
    fn write(&self, text: &str, id: u32, unknown_before: bool, ids: &mut Vec<u32>) -> bool {
        if id != NONE {
            ids.push(id);
            return false;
        }
        let bytes: Option<Vec<u32>> = text.bytes().map(|b| self.byte_ids[b as usize]).collect();
        if let Some(bytes) = bytes {
            ids.extend(bytes);
            return false;
        }
        if !unknown_before {
            ids.extend(self.unk);
        }
        true
    }

    /// The same model as a list of merges, for `tokenizer.json`: every way to make a piece of two, best score first.
    ///
    /// Equal ids wherever no two overlapping merges share a score.
    pub(crate) fn to_bpe(&self) -> tokenizers::Result<BPE> {
        let mut merges: Vec<(u32, u32, u32)> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|&(id, t)| self.piece(t) == Some(id as u32)) {
            for (at, _) in token.char_indices().skip(1) {
                if let (Some(a), Some(b)) = (self.piece(&token[..at]), self.piece(&token[at..])) {
                    merges.push((id as u32, a, b));
                }
            }
        }
        let score = |id: u32| ByScore(self.scores[id as usize]);
        merges.sort_by_key(|&(id, a, b)| (Reverse(score(id)), id, a, b));
        let token = |id: u32| self.tokens[id as usize].clone();
        let merges: Merges = merges.into_iter().map(|(_, a, b)| (token(a), token(b))).collect();
        let mut vocabulary = Vocab::with_capacity(self.ids.len());
        vocabulary.extend(self.ids.iter().map(|(t, &id)| (t.clone(), id)));
        let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
        match self.unk {
            Some(unk) => bpe.unk_token(token(unk)).build(),
            None => bpe.build(),
        }
    }
}

impl Model for ScoreMerges {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        if sequence.len() >= NONE as usize {
            return Err("a text of more than 4 GiB cannot be tokenized at once".into());
        }
        Ok(self.encode(sequence).into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokens.get(id as usize).cloned()
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.tokens.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this vocabulary is saved as tokenizer.json".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[(&str, f32)]) -> ScoreMerges {
        let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned()];
        let mut scores = vec![0.0, 0.0];
        tokens.extend(pieces.iter().map(|(t, _)| (*t).to_owned()));
        scores.extend(pieces.iter().map(|(_, s)| *s));
        let from_text = (0..tokens.len()).map(|id| id > 1 && byte_of(&tokens[id]).is_none()).collect();
        ScoreMerges::new(tokens, scores, from_text, Some(0))
    }

    fn pieces(m: &ScoreMerges, text: &str) -> Vec<String> {
        m.encode(text).iter().map(|&id| m.tokens[id as usize].clone()).collect()
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_of_equals() {
        let m = model(&[("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("abc", -3.0)]);
        assert_eq!(pieces(&m, "abc"), ["abc"]);
        let m = model(&[("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0)]);
        assert_eq!(pieces(&m, "abc"), ["a", "bc"]);
        let m = model(&[("a", -9.0), ("b", -9.0), ("c", -9.0), ("bc", -1.0), ("ab", -1.0)]);
        assert_eq!(pieces(&m, "abc"), ["ab", "c"]);
    }

    #[test]
    fn what_is_no_piece_becomes_bytes_or_one_unknown() {
        let m = model(&[("a", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0)]);
        assert_eq!(pieces(&m, "aé"), ["a", "<0xC3>", "<0xA9>"]);
        assert_eq!(pieces(&m, "xya€"), ["<unk>", "a", "<unk>"]);
        assert_eq!(pieces(&m, ""), Vec::<String>::new());
    }

    #[test]
    fn text_never_spells_a_control_token() {
        let m = model(&[("<", 0.0), ("s", 0.0), (">", 0.0), ("<s", -1.0)]);
        assert_eq!(pieces(&m, "<s>"), ["<s", ">"]);
    }

    #[test]
    fn the_list_of_merges_gives_the_same_ids() {
        let m = model(&[
            ("▁", -9.0),
            ("a", -10.0),
            ("b", -11.0),
            ("ab", -1.0),
            ("▁a", -2.0),
            ("ba", -3.0),
            ("▁ab", -4.0),
            ("aa", -5.0),
            ("aaa", -6.0),
            ("abab", -7.0),
        ]);
        let bpe = m.to_bpe().unwrap();
        for n in 0..3_u32.pow(7) {
            let text: String = (0..7).map(|i| ['▁', 'a', 'b'][(n / 3_u32.pow(i) % 3) as usize]).collect();
            let ids: Vec<u32> = bpe.tokenize(&text).unwrap().iter().map(|t| t.id).collect();
            assert_eq!(m.encode(&text), ids, "{text}");
        }
    }
}
