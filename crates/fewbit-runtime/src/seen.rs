/// The tokens of a text so far, and which they are: what the repetition penalty asks for at every token.
///
/// One more token, or one less, costs the same however long the text is.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    ids: Vec<u32>,
    /// Each id once, with the position where it came first, in this order.
    distinct: Vec<(u32, usize)>,
    /// A bit for each id.
    marks: Vec<u64>,
}

impl Seen {
    /// The tokens in order.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Each token once, in the order in which they came first.
    pub fn distinct(&self) -> impl Iterator<Item = u32> {
        self.distinct.iter().map(|(id, _)| *id)
    }

    /// The next token.
    pub fn push(&mut self, id: u32) {
        let (word, bit) = place(id);
        if self.marks.len() <= word {
            self.marks.resize(word + 1, 0);
        }
        if self.marks[word] & bit == 0 {
            self.marks[word] |= bit;
            self.distinct.push((id, self.ids.len()));
        }
        self.ids.push(id);
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        while let Some((id, _)) = self.distinct.pop_if(|(_, first)| *first >= len) {
            let (word, bit) = place(id);
            self.marks[word] &= !bit;
        }
    }

    /// Becomes `ids`; what is the same at the beginning stays.
    pub fn become_text(&mut self, ids: &[u32]) {
        let same = same_beginning(&self.ids, ids);
        self.truncate(same);
        ids[same..].iter().for_each(|id| self.push(*id));
    }
}

/// How many tokens two texts begin with alike.
pub(crate) fn same_beginning(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn place(id: u32) -> (usize, u64) {
    (id as usize / 64, 1 << (id % 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn distinct_tokens_are_those_of_the_text(steps in prop::collection::vec((0u32..200, 0usize..40), 1..60)) {
            let (mut seen, mut plain) = (Seen::default(), Vec::new());
            for (id, len) in steps {
                if id % 5 == 0 {
                    seen.truncate(len);
                    plain.truncate(len);
                } else {
                    seen.push(id);
                    plain.push(id);
                }
                prop_assert_eq!(seen.ids(), &plain[..]);
                let mut first: Vec<u32> = Vec::new();
                plain.iter().for_each(|id| if !first.contains(id) { first.push(*id) });
                prop_assert_eq!(seen.distinct().collect::<Vec<_>>(), first);
            }
            seen.become_text(&[7, 7, 300]);
            prop_assert_eq!(seen.distinct().collect::<Vec<_>>(), [7, 300]);
        }
    }
}
