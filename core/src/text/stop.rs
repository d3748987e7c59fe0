//! Ends a text at a stop string, while it streams.

/// Looks for stop strings in a stream of text, also across the borders of its pieces.
///
/// The text ends where the first of them is completed; of those that the same character completes, the longest
/// counts. So nothing needs to be read beyond the end, and how the text is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    include: bool,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// What a piece of text has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is certain by now.
    pub text: String,
    /// The stop string that ended the text, if one did.
    pub stop: Option<String>,
}

impl StopStrings {
    /// Looks for any of `stops`; empty ones count for nothing. `include` keeps the stop string in the text.
    pub fn new(mut stops: Vec<String>, include: bool) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, include, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text. After the end there is no more text.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped::default();
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((start, stop)) = found.min_by_key(|(start, stop)| (start + stop.len(), *start)) {
            let stop = stop.clone();
            self.held.truncate(if self.include { start + stop.len() } else { start });
            self.stopped = true;
            return Stopped { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let begun = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let certain = self.held.len() - begun;
        Stopped { text: self.held.drain(..certain).collect(), stop: None }
    }

    /// The text still held back, at the end of the stream.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that is the beginning of `whole`, but not all of it.
pub(super) fn begun(text: &str, whole: &str) -> usize {
    // `whole` may be much longer than the text there is.
    let most = text.len().min(whole.len().saturating_sub(1));
    let begins = |&n: &usize| whole.is_char_boundary(n) && text.as_bytes().ends_with(&whole.as_bytes()[..n]);
    (1..=most).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{StopStrings, Stopped};

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn text_is_given_out_as_soon_as_it_is_certain() {
        let mut stops = StopStrings::new(strings(&["\n\nUser:", "END", ""]), false);
        let nothing = |text: &str| Stopped { text: text.into(), stop: None };
        assert_eq!(stops.push("one\n"), nothing("one"));
        assert_eq!(stops.push("\n"), nothing(""));
        assert_eq!(stops.push("two E"), nothing("\n\ntwo "));
        assert_eq!(stops.push("NEN"), nothing("EN"));
        assert_eq!(stops.push("D and more"), Stopped { text: String::new(), stop: Some("END".into()) });
        assert_eq!(stops.push("more"), nothing(""));
        assert_eq!(stops.finish(), "");
        let mut stops = StopStrings::new(strings(&["END"]), true);
        assert_eq!(stops.push("the EN"), nothing("the "));
        assert_eq!(stops.push("D"), Stopped { text: "END".into(), stop: Some("END".into()) });
        let mut stops = StopStrings::new(strings(&["END"]), true);
        assert_eq!((stops.push("EN").text, stops.finish()), (String::new(), "EN".to_owned()));
    }

    #[test]
    fn the_stop_string_completed_first_counts() {
        for (stops, text, expected) in [
            (&["b", "abc"][..], "xabc", ("xa", "b")),
            (&["c", "abc"], "xabc", ("x", "abc")),
            (&["abc", "ab"], "xabc", ("x", "ab")),
            (&["é"], "caf\u{e9}s", ("caf", "é")),
        ] {
            let found = StopStrings::new(strings(stops), false).push(text);
            assert_eq!((found.text.as_str(), found.stop.as_deref()), (expected.0, Some(expected.1)));
        }
    }

    /// What reading the whole text character by character gives.
    fn searched(stops: &[String], include: bool, text: &str) -> (String, Option<String>) {
        for end in (1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let complete =
                stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
                let kept = if include { end } else { end - stop.len() };
                return (text[..kept].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abéc]{0,4}", 0..12),
            include: bool,
        ) {
            let mut search = StopStrings::new(stops.clone(), include);
            let (mut text, mut stop) = (String::new(), None);
            for piece in &pieces {
                let found = search.push(piece);
                text += &found.text;
                stop = stop.or(found.stop);
            }
            text += &search.finish();
            prop_assert_eq!((text, stop), searched(&stops, include, &pieces.concat()));
        }
    }
}
