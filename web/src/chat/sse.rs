//! From the bytes of a server's stream to what happens to a request.

use serde::Deserialize;

use super::{ChatEvent, Usage};

/// Splits server-sent events into the data of each.
#[derive(Debug, Default)]
pub struct Events {
    /// Bytes of a line that is not complete.
    line: Vec<u8>,
    data: String,
    /// The last byte was a carriage return: a line feed right behind it belongs to it.
    returned: bool,
}

impl Events {
    /// Takes more bytes; returns the data of events that are complete with them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = vec![];
        for &byte in bytes {
            let second = byte == b'\n' && self.returned;
            self.returned = byte == b'\r';
            match byte {
                _ if second => {}
                b'\n' | b'\r' => self.end_line(&mut events),
                _ => self.line.push(byte),
            }
        }
        events
    }

    fn end_line(&mut self, events: &mut Vec<String>) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if !data.is_empty() {
                events.push(data);
            }
        } else if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(&String::from_utf8_lossy(data.strip_prefix(b" ").unwrap_or(data)));
        }
    }
}

/// Reads the data of a chat's events.
#[derive(Debug, Default)]
pub struct Answer {
    reason: Option<String>,
    usage: Usage,
}

#[derive(Deserialize)]
struct Chunk {
    error: Option<ErrorBody>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Vec<CallDelta>,
}

#[derive(Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: usize,
    id: Option<String>,
    #[serde(default)]
    function: FunctionDelta,
}

#[derive(Default, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: Option<WireDetails>,
}

#[derive(Deserialize)]
struct WireDetails {
    cached_tokens: Option<usize>,
}

impl Answer {
    /// What the data of an event says.
    pub fn read(&mut self, data: &str) -> Vec<ChatEvent> {
        if data == "[DONE]" {
            return vec![self.end()];
        }
        let chunk: Chunk = match serde_json::from_str(data) {
            Ok(chunk) => chunk,
            Err(error) => {
                let message =
                    format!("The server said something that is not understood ({error}). Try again.");
                return vec![ChatEvent::Failed { message }];
            }
        };
        if let Some(error) = chunk.error {
            return vec![ChatEvent::Failed { message: error.message }];
        }
        if let Some(usage) = chunk.usage {
            self.usage = Usage {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: usage.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0),
                completion_tokens: usage.completion_tokens,
            };
        }
        let Some(choice) = chunk.choices.into_iter().next() else { return vec![] };
        self.reason = choice.finish_reason.or(self.reason.take());
        choice.delta.events()
    }

    fn end(&mut self) -> ChatEvent {
        match self.reason.take() {
            Some(reason) => ChatEvent::Finished { reason, usage: self.usage },
            None => broken(),
        }
    }
}

/// The stream ended before the answer did.
pub fn broken() -> ChatEvent {
    let message =
        "The connection broke before the answer was complete. What came stays; regenerate to try again.";
    ChatEvent::Failed { message: message.to_owned() }
}

impl Delta {
    fn events(self) -> Vec<ChatEvent> {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let mut events = vec![];
        events.extend(some(self.reasoning_content).map(|text| ChatEvent::Reasoning { text }));
        events.extend(some(self.content).map(|text| ChatEvent::Content { text }));
        events.extend(self.tool_calls.into_iter().map(|call| ChatEvent::ToolCall {
            index: call.index,
            id: call.id,
            name: call.function.name,
            arguments: call.function.arguments.unwrap_or_default(),
        }));
        events
    }
}

/// The message of an error in OpenAI's form.
pub fn error_message(body: &str) -> Option<String> {
    serde_json::from_str::<Chunk>(body).ok()?.error.map(|error| error.message)
}

#[cfg(test)]
mod tests {
    use super::{Answer, ChatEvent, Events, Usage, error_message};

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning_content\":\"hm\"},\"finish_reason\":null}]}\r\n\r\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"gr\u{fc}n \u{1f98a}\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"x\",\"type\":\"function\",",
        "\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,",
        "\"function\":{\"arguments\":\"}\"}}]},\"finish_reason\":\"tool_calls\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"total_tokens\":13,",
        "\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n",
        "data: [DONE]\n\n",
    );

    fn read(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<ChatEvent> {
        let (mut events, mut answer) = (Events::default(), Answer::default());
        pieces.flat_map(|bytes| events.push(&bytes)).flat_map(|data| answer.read(&data)).collect()
    }

    #[test]
    fn a_stream_says_the_same_however_it_is_cut() {
        let bytes = STREAM.as_bytes();
        let whole = read(std::iter::once(bytes.to_vec()));
        let call = |id: Option<&str>, name: Option<&str>, arguments: &str| ChatEvent::ToolCall {
            index: 0,
            id: id.map(str::to_owned),
            name: name.map(str::to_owned),
            arguments: arguments.to_owned(),
        };
        assert_eq!(
            whole,
            [
                ChatEvent::Reasoning { text: "hm".to_owned() },
                ChatEvent::Content { text: "gr\u{fc}n \u{1f98a}".to_owned() },
                call(Some("x"), Some("f"), "{"),
                call(None, None, "}"),
                ChatEvent::Finished {
                    reason: "tool_calls".to_owned(),
                    usage: Usage { prompt_tokens: 9, cached_tokens: 2, completion_tokens: 4 },
                },
            ]
        );
        for size in 1..40 {
            assert_eq!(read(bytes.chunks(size).map(<[u8]>::to_vec)), whole, "in pieces of {size}");
        }
    }

    #[test]
    fn lines_end_in_three_ways_and_data_may_have_several() {
        let mut events = Events::default();
        assert_eq!(events.push(b"data: a\r\rdata:b\ndata: c\n\nevent: x\r\n\r\nda"), ["a", "b\nc"]);
        assert_eq!(events.push(b"ta: d\r\n\r"), ["d"]);
        assert!(events.push(b"\n").is_empty());
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let mut answer = Answer::default();
        let failed = |events: Vec<ChatEvent>| match events.as_slice() {
            [ChatEvent::Failed { message }] => message.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(failed(answer.read(r#"{"error":{"message":"lost","type":"server_error"}}"#)), "lost");
        assert!(failed(answer.read("<html>")).contains("not understood"));
        assert!(failed(Answer::default().read("[DONE]")).contains("broke"));
        assert_eq!(error_message(r#"{"error":{"message":"m"}}"#).as_deref(), Some("m"));
        assert_eq!(error_message("Bad gateway"), None);
    }
}
