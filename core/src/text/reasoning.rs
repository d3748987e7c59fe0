//! Splits an answer into the model's reasoning and its content, while it streams.

/// New text of each kind; either may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Text before `</think>`.
    pub reasoning: String,
    /// Text after it.
    pub content: String,
}

/// Cuts a stream of text at `</think>`. The tag itself is dropped, and so is white space next to the cut; a tag
/// may come in pieces. Needs text with special tokens in it, for in some vocabularies the tags are special.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    state: State,
    /// Text that may be the beginning of a tag, or white space that may stand before one.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: `<think>` may follow.
    Start,
    /// `<think>` or the start of reasoning behind us, only white space since.
    BeforeReasoning,
    Reasoning,
    /// `</think>` behind us, only white space since.
    BeforeContent,
    Content,
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl ReasoningSplitter {
    /// A splitter for the answer to `prompt`. Where the template has opened `<think>` in the prompt, the answer
    /// starts inside; else it is content unless it begins with `<think>`.
    pub fn new(prompt: &str) -> Self {
        let inside = prompt.trim_end().ends_with(OPEN);
        Self { state: if inside { State::BeforeReasoning } else { State::Start }, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Split {
        self.held.push_str(text);
        let mut split = Split::default();
        while self.step(&mut split) {}
        split
    }

    /// The text still held back, at the end of the answer.
    pub fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::BeforeReasoning | State::Reasoning => {
                Split { reasoning: held.trim_end().to_owned(), content: String::new() }
            }
            State::Start | State::BeforeContent | State::Content => {
                Split { reasoning: String::new(), content: held }
            }
        }
    }

    /// Moves text from `held` to `split`; whether there may be more to do.
    fn step(&mut self, split: &mut Split) -> bool {
        match self.state {
            State::Start => {
                let start = self.held.trim_start();
                if let Some(rest) = start.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::BeforeReasoning;
                } else if OPEN.starts_with(start) {
                    return false;
                } else {
                    self.state = State::Content;
                }
                true
            }
            State::BeforeReasoning | State::BeforeContent => {
                self.held.drain(..self.held.len() - self.held.trim_start().len());
                if self.held.is_empty() {
                    return false;
                }
                let reasoning = self.state == State::BeforeReasoning;
                self.state = if reasoning { State::Reasoning } else { State::Content };
                true
            }
            State::Reasoning => {
                if let Some(at) = self.held.find(CLOSE) {
                    split.reasoning.push_str(self.held[..at].trim_end());
                    self.held.drain(..at + CLOSE.len());
                    self.state = State::BeforeContent;
                    return true;
                }
                let partial = (1..CLOSE.len()).rev().find(|&n| self.held.ends_with(&CLOSE[..n])).unwrap_or(0);
                let ready = self.held[..self.held.len() - partial].trim_end().len();
                split.reasoning.extend(self.held.drain(..ready));
                false
            }
            State::Content => {
                split.content.push_str(&self.held);
                self.held.clear();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ReasoningSplitter, Split};

    fn split(prompt: &str, pieces: impl IntoIterator<Item = String>) -> (String, String) {
        let mut splitter = ReasoningSplitter::new(prompt);
        let mut splits: Vec<Split> = pieces.into_iter().map(|piece| splitter.push(&piece)).collect();
        splits.push(splitter.finish());
        (
            splits.iter().map(|s| s.reasoning.as_str()).collect(),
            splits.iter().map(|s| s.content.as_str()).collect(),
        )
    }

    const OPENED: &str = "<|BOT|>assistant\n<think>\n";

    /// However the text is cut into pieces, the outcome is the same.
    #[test]
    fn pieces_do_not_matter() {
        let cases = [
            (OPENED, "</think>\nHello  \n", ("", "Hello  \n")),
            (
                OPENED,
                "I think </thin> is\n\n a tag. \n</think>\n\n a</think>b",
                ("I think </thin> is\n\n a tag.", "a</think>b"),
            ),
            (OPENED, "\n cut off </thi", ("cut off </thi", "")),
            (OPENED, "never closed \n ", ("never closed", "")),
            ("user:", "<think>é</think>ü", ("é", "ü")),
            ("user:", "\n<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
            ("user:", "\n <thin air>", ("", "\n <thin air>")),
            ("user: <think> what?", " no reasoning</think>", ("", " no reasoning</think>")),
            ("user:", " <thi", ("", " <thi")),
            ("user:", "", ("", "")),
        ];
        for (prompt, text, (reasoning, content)) in cases {
            let expected = (reasoning.to_owned(), content.to_owned());
            assert_eq!(split(prompt, [text.to_owned()]), expected, "{text:?} whole");
            assert_eq!(split(prompt, text.chars().map(String::from)), expected, "{text:?} by character");
            for at in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
                let pieces = [text[..at].to_owned(), text[at..].to_owned()];
                assert_eq!(split(prompt, pieces), expected, "{text:?} cut at {at}");
            }
        }
    }

    #[test]
    fn text_is_given_out_as_soon_as_it_is_certain() {
        let mut splitter = ReasoningSplitter::new(OPENED);
        assert_eq!(splitter.push("one two").reasoning, "one two");
        assert_eq!(splitter.push(" <").reasoning, "");
        assert_eq!(splitter.push("3").reasoning, " <3");
        assert_eq!(splitter.push("</think>x"), Split { reasoning: String::new(), content: "x".into() });
        assert_eq!(splitter.push("<").content, "<");
    }
}
