//! A conversation: a tree of messages, of which one path is shown.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{ChatRequest, Message, ToolCall, Usage};

/// Most characters of a title made of a message.
const TITLE: usize = 60;

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// Names it among others.
    pub id: String,
    /// For people; empty until something is said.
    pub title: String,
    /// When something was said last, in milliseconds since 1970.
    pub updated: u64,
    /// How it is answered.
    #[serde(default)]
    pub settings: Settings,
    /// All messages, in the order in which they came: a parent stands before its children.
    pub nodes: Vec<Node>,
    /// Which of the first messages is shown.
    #[serde(default)]
    pub selected: Option<usize>,
}

/// A message in its place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// What it follows; none: it is a first message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<usize>,
    /// Which of those that follow it is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<usize>,
    /// What was said.
    pub message: Message,
    /// What the model thought before it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// How an answer came about; none: it was written by a person, or its end was never heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// How an answer came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// `stop`, `length`, `tool_calls`; `stopped`: by the user; `failed`.
    pub reason: String,
    /// Why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its tokens; none are counted where it was stopped or failed.
    pub usage: Usage,
    /// The model.
    pub model: String,
    /// Where it ran, for people.
    pub place: String,
    /// Milliseconds until the first text.
    pub first_ms: u64,
    /// Milliseconds in all.
    pub total_ms: u64,
}

impl Outcome {
    /// Tokens a second after the first; none where they came too fast for the clock.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let tokens = self.usage.completion_tokens.checked_sub(1).filter(|&tokens| tokens > 0)?;
        let ms = self.total_ms.checked_sub(self.first_ms).filter(|&ms| ms >= 20)?;
        Some(tokens as f64 * 1000.0 / ms as f64)
    }

    /// Of an answer that goes on after `before`.
    pub fn after(mut self, before: &Self) -> Self {
        self.usage.completion_tokens += before.usage.completion_tokens;
        self.usage.prompt_tokens = before.usage.prompt_tokens;
        self.usage.cached_tokens = before.usage.cached_tokens;
        self.first_ms = before.first_ms;
        self.total_ms += before.total_ms;
        self
    }
}

impl Conversation {
    /// Nothing is said yet.
    pub fn new(id: String) -> Self {
        Self { id, ..Self::default() }
    }

    /// The messages that are shown, first to last.
    pub fn path(&self) -> Vec<usize> {
        let mut path = vec![];
        let mut next = self.selected;
        while let Some(node) = next.filter(|&node| node < self.nodes.len()) {
            path.push(node);
            next = self.nodes[node].selected;
        }
        path
    }

    /// Messages in the place of this one, itself among them.
    pub fn siblings(&self, node: usize) -> Vec<usize> {
        let parent = self.nodes.get(node).and_then(|node| node.parent);
        (0..self.nodes.len()).filter(|&other| self.nodes[other].parent == parent).collect()
    }

    /// Adds a message behind `parent` and shows it.
    pub fn add(&mut self, parent: Option<usize>, message: Message) -> usize {
        if self.title.is_empty() && message.role == "user" {
            self.title = title(&message.content);
        }
        let node = self.nodes.len();
        self.nodes.push(Node { parent, message, ..Node::default() });
        self.select(node);
        node
    }

    /// Shows a message in place of its siblings.
    pub fn select(&mut self, node: usize) {
        match self.nodes.get(node).map(|node| node.parent) {
            Some(Some(parent)) => self.nodes[parent].selected = Some(node),
            Some(None) => self.selected = Some(node),
            None => {}
        }
    }

    /// The answer in making at `node` is to be written by a model that reads all that stands before it. Where `node`
    /// has text already, that is to be continued.
    pub fn request(&self, node: usize) -> Result<ChatRequest, String> {
        let mut messages = vec![];
        let mut next = Some(node);
        while let Some(node) = next.and_then(|node| self.nodes.get(node)) {
            messages.push(node.message.clone());
            next = node.parent;
        }
        let continues = messages.first().is_some_and(|last| !last.content.is_empty());
        if !continues && !messages.is_empty() {
            messages.remove(0);
        }
        if !self.settings.system.trim().is_empty() {
            messages.push(Message {
                role: "system".to_owned(),
                content: self.settings.system.clone(),
                ..Message::default()
            });
        }
        messages.reverse();
        Ok(ChatRequest {
            messages,
            sampling: self.settings.sampling.clone(),
            tools: self.settings.tools()?,
            continues,
        })
    }

    /// Calls at the end of what is shown that have no result yet.
    pub fn open_calls(&self) -> Option<(usize, Vec<ToolCall>)> {
        let last = self.path().pop()?;
        let calls = &self.nodes[last].message.tool_calls;
        (!calls.is_empty()).then(|| (last, calls.clone()))
    }

    /// Tokens of what is shown, as far as the last answer tells.
    pub fn tokens(&self) -> Option<usize> {
        self.path().into_iter().rev().find_map(|node| {
            let usage = self.nodes[node].outcome.as_ref()?.usage;
            Some(usage.prompt_tokens + usage.completion_tokens).filter(|&tokens| tokens > 0)
        })
    }

    /// Whether title or any message has `needle`, which is in lower case.
    pub fn contains(&self, needle: &str) -> bool {
        let has = |text: &str| text.to_lowercase().contains(needle);
        has(&self.title) || self.nodes.iter().any(|node| has(&node.message.content))
    }

    /// Why this cannot be a conversation, if it cannot. What comes from a file or from storage is not believed.
    pub fn check(&self) -> Result<(), String> {
        for (index, node) in self.nodes.iter().enumerate() {
            let role = node.message.role.as_str();
            if !matches!(role, "user" | "assistant" | "tool") {
                return Err(format!("message {index} is by \u{201c}{}\u{201d}", clip(role, 20)));
            }
            if node.parent.is_some_and(|parent| parent >= index) {
                return Err(format!("message {index} follows one that comes later"));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            self.check_selected(node.selected, Some(index))?;
        }
        self.check_selected(self.selected, None)
    }

    fn check_selected(&self, selected: Option<usize>, parent: Option<usize>) -> Result<(), String> {
        match selected {
            Some(child) if self.nodes.get(child).is_none_or(|child| child.parent != parent) => {
                Err(format!("message {child} is shown where it does not belong"))
            }
            _ => Ok(()),
        }
    }
}

/// A title: the first words of a text.
fn title(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("Untitled");
    clip(line, TITLE)
}

/// No more than so many characters of a text.
pub fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}\u{2026}", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Conversation, Outcome};
    use crate::chat::{Message, Usage};

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
    }

    fn texts(conversation: &Conversation) -> Vec<&str> {
        conversation.path().into_iter().map(|n| conversation.nodes[n].message.content.as_str()).collect()
    }

    #[test]
    fn editing_branches_and_arrows_lead_back() {
        let mut talk = Conversation::new("a".to_owned());
        let question = talk.add(None, message("user", "\n one \ntwo"));
        let answer = talk.add(Some(question), message("assistant", "1"));
        talk.add(Some(answer), message("user", "more"));
        assert_eq!(talk.title, "one");
        assert_eq!(texts(&talk), ["\n one \ntwo", "1", "more"]);

        let again = talk.add(Some(question), message("assistant", "2"));
        assert_eq!(texts(&talk), ["\n one \ntwo", "2"]);
        assert_eq!(talk.siblings(answer), [answer, again]);
        let edited = talk.add(None, message("user", "three"));
        assert_eq!(texts(&talk), ["three"]);
        assert_eq!(talk.siblings(question), [question, edited]);
        // Each place remembers what was shown below it.
        talk.select(question);
        assert_eq!(texts(&talk), ["\n one \ntwo", "2"]);
        talk.select(answer);
        assert_eq!(texts(&talk), ["\n one \ntwo", "1", "more"]);
        assert_eq!(talk.check(), Ok(()));
        assert!(talk.contains("three") && !talk.contains("four"));
    }

    #[test]
    fn a_request_has_only_its_own_branch() {
        let mut talk = Conversation::new("a".to_owned());
        talk.settings.system = "Be brief.".to_owned();
        let question = talk.add(None, message("user", "a"));
        talk.add(Some(question), message("assistant", "other branch"));
        let answer = talk.add(Some(question), message("assistant", ""));
        let request = talk.request(answer).unwrap();
        let said: Vec<_> = request.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(said, [("system", "Be brief."), ("user", "a")]);
        assert!(!request.continues);

        talk.nodes[answer].message.content = "begun".to_owned();
        let request = talk.request(answer).unwrap();
        assert_eq!(request.messages.last().map(|m| m.content.as_str()), Some("begun"));
        assert!(request.continues);
    }

    #[test]
    fn impossible_trees_are_refused() {
        let mut talk = Conversation::new("a".to_owned());
        let question = talk.add(None, message("user", "a"));
        let answer = talk.add(Some(question), message("assistant", "b"));
        for (spoil, part) in [
            ((|talk, _| talk.nodes[0].parent = Some(1)) as fn(&mut Conversation, usize), "comes later"),
            (|talk, answer| talk.nodes[answer].parent = Some(answer), "comes later"),
            (|talk, _| talk.selected = Some(7), "does not belong"),
            (|talk, answer| talk.nodes[answer].selected = Some(0), "does not belong"),
            (|talk, _| talk.nodes[0].message.role = "system".to_owned(), "by \u{201c}system"),
        ] {
            let mut spoiled = talk.clone();
            spoil(&mut spoiled, answer);
            assert!(spoiled.check().unwrap_err().contains(part), "{part}");
        }
    }

    #[test]
    fn speed_counts_what_comes_after_the_first_token() {
        let usage = Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 11 };
        let outcome = Outcome { usage, first_ms: 100, total_ms: 1100, ..Outcome::default() };
        assert_eq!(outcome.tokens_per_s(), Some(10.0));
        assert_eq!(Outcome::default().tokens_per_s(), None);
        let whole = outcome.clone().after(&outcome);
        assert_eq!((whole.usage.completion_tokens, whole.usage.prompt_tokens, whole.total_ms), (22, 5, 2200));
    }
}
