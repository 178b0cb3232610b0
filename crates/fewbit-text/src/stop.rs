/// Ends a streamed text at the first of several stop strings.
///
/// Text that may be the beginning of a stop string is held back until it is known not to be one, so that no
/// character of a stop string is ever delivered. The first occurrence is the one that is complete first; the answer
/// therefore does not depend on how the text was cut into chunks.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What a chunk of text became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Text to deliver (it may be empty: all of it is held back).
    No(String),
    /// The last text to deliver: a stop string followed.
    Yes(String),
}

impl StopStrings {
    /// Stops at any of `stops`; empty strings are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect();
        Self { stops, ..Self::default() }
    }

    /// Takes the next chunk and returns what may be delivered; after a stop nothing more is.
    pub fn push(&mut self, chunk: &str) -> Stopped {
        if self.stopped {
            return Stopped::Yes(String::new());
        }
        self.held.push_str(chunk);
        if let Some(start) = self.first_occurrence() {
            self.stopped = true;
            self.held.truncate(start);
            return Stopped::Yes(std::mem::take(&mut self.held));
        }
        let keep_from = self.held.len() - self.unfinished();
        let rest = self.held.split_off(keep_from);
        Stopped::No(std::mem::replace(&mut self.held, rest))
    }

    /// The text that was held back when the answer ended without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the occurrence that ends first; of two that end together, the longer one.
    fn first_occurrence(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|s| self.held.find(s).map(|start| (start + s.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// Bytes at the end that are a beginning of a stop string.
    fn unfinished(&self) -> usize {
        let longest = |s: &String| {
            (1..s.len().min(self.held.len() + 1))
                .rev()
                .find(|&n| s.is_char_boundary(n) && self.held.as_bytes().ends_with(&s.as_bytes()[..n]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delivers `text` in chunks of `n` characters.
    fn run(stops: &[&str], text: &str, n: usize) -> (String, bool) {
        let mut stop = StopStrings::new(stops.iter().copied());
        let mut out = String::new();
        let chars: Vec<char> = text.chars().collect();
        for chunk in chars.chunks(n) {
            match stop.push(&chunk.iter().collect::<String>()) {
                Stopped::No(t) => out += &t,
                Stopped::Yes(t) => return (out + &t, true),
            }
        }
        (out + &stop.finish(), false)
    }

    #[test]
    fn text_up_to_the_first_occurrence_however_it_is_cut() {
        let text = ", there was a little girl named Lily. She loved to play";
        let cases: [(&[&str], &str, bool); 6] = [
            (&["girl named Li"], ", there was a little ", true),
            (&["e"], ", th", true),
            (&["Lily. She loathed"], text, false),
            (&["ved"], ", there was a little girl named Lily. She lo", true),
            (&["Lily. She", "She loved", "ily"], ", there was a little girl named L", true),
            (&[""], text, false),
        ];
        for (stops, want, stopped) in cases {
            for n in 1..text.len() {
                assert_eq!(run(stops, text, n), (want.to_owned(), stopped), "{stops:?} by {n}");
            }
        }
    }

    #[test]
    fn overlapping_beginnings_are_not_lost() {
        for n in 1..6 {
            assert_eq!(run(&["aab"], "aaab", n), ("a".to_owned(), true));
            assert_eq!(run(&["abab!"], "ababab!", n), ("ab".to_owned(), true));
            assert_eq!(run(&["é€!"], "xé€é€?", n), ("xé€é€?".to_owned(), false));
            assert_eq!(run(&["abcd", "bc"], "abcd", n), ("a".to_owned(), true));
        }
    }

    #[test]
    fn held_text_is_delivered_at_the_end_and_nothing_after_a_stop() {
        let mut stop = StopStrings::new(["###"]);
        assert_eq!(stop.push("a##"), Stopped::No("a".to_owned()));
        assert_eq!(stop.finish(), "##");
        let mut stop = StopStrings::new(["#"]);
        assert_eq!(stop.push("a#b"), Stopped::Yes("a".to_owned()));
        assert_eq!(stop.push("c"), Stopped::Yes(String::new()));
        assert_eq!(stop.finish(), "");
    }
}
