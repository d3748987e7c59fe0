//! Markdown as a tree that the page shows node by node. What a model writes is never taken for HTML.

use pulldown_cmark::{Alignment, CodeBlockKind, Event, Options, Parser, Tag as Markup};

/// Deepest nesting that is shown as such; what is deeper goes to the level above.
const DEEPEST: usize = 24;

/// A piece of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Text as it stands.
    Text(String),
    /// Code within a line.
    Code(String),
    /// Lines of code.
    CodeBlock {
        /// As the text names it.
        language: String,
        /// The code.
        text: String,
    },
    /// A new line.
    Break,
    /// A line across.
    Rule,
    /// The box of a task.
    Task(bool),
    /// Pieces that belong together.
    Group(Tag, Vec<Node>),
}

/// What pieces are together.
#[derive(Clone, Debug, PartialEq)]
pub enum Tag {
    /// A paragraph.
    Paragraph,
    /// A heading and its level, from 1 to 6.
    Heading(u8),
    /// Somebody else's words.
    Quote,
    /// A list; with a number, it counts from there.
    List(Option<u64>),
    /// One of a list.
    Item,
    /// A table.
    Table,
    /// The row of a table that names its columns.
    Head,
    /// A row of a table.
    Row,
    /// A cell of a table.
    Cell(Align),
    /// Stressed.
    Emphasis,
    /// Stressed more.
    Strong,
    /// Struck out.
    Strike,
    /// A link; none: its address is not one that may be followed.
    Link(Option<String>),
    /// An image, which is not loaded: a model must not make the browser call anybody.
    Image(Option<String>),
}

/// Where the text of a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Where its line begins.
    Start,
    /// In the middle.
    Center,
    /// Where its line ends.
    End,
}

/// Reads a text: its blocks in order.
pub fn parse(text: &str) -> Vec<Node> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut builder = Builder { open: vec![(None, vec![])], columns: vec![], column: 0, skipped: 0 };
    for event in Parser::new_ext(text, options) {
        builder.take(event);
    }
    builder.whole()
}

/// The address of a link if it may be followed.
fn address(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once(':')?;
    let allowed = ["http", "https", "mailto"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    allowed.then(|| url.to_owned())
}

/// What a group becomes at its end; none: its nodes go to the group around it.
enum Kind {
    Group(Tag),
    Code(String),
}

struct Builder {
    /// Groups not yet ended, each with its nodes. The first is the text itself.
    open: Vec<(Option<Kind>, Vec<Node>)>,
    columns: Vec<Align>,
    column: usize,
    /// Groups not yet ended that are too deep to be shown.
    skipped: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(_) if self.open.len() > DEEPEST => self.skipped += 1,
            Event::Start(markup) => {
                let kind = self.kind(markup);
                self.open.push((kind, vec![]));
            }
            Event::End(_) if self.skipped > 0 => self.skipped -= 1,
            Event::End(_) => self.close(),
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => self.text(&text),
            Event::Code(text) => self.push(Node::Code(text.into_string())),
            Event::SoftBreak => self.text("\n"),
            Event::HardBreak => self.push(Node::Break),
            Event::Rule => self.push(Node::Rule),
            Event::TaskListMarker(done) => self.push(Node::Task(done)),
            // Not switched on.
            Event::FootnoteReference(text) | Event::InlineMath(text) | Event::DisplayMath(text) => {
                self.text(&text);
            }
        }
    }

    fn kind(&mut self, markup: Markup<'_>) -> Option<Kind> {
        let tag = match markup {
            Markup::Paragraph | Markup::HtmlBlock => Tag::Paragraph,
            Markup::Heading { level, .. } => Tag::Heading(level as u8),
            Markup::BlockQuote(_) => Tag::Quote,
            Markup::CodeBlock(kind) => {
                let language = match kind {
                    CodeBlockKind::Fenced(info) => {
                        info.split([' ', ',', '{']).next().unwrap_or_default().to_owned()
                    }
                    CodeBlockKind::Indented => String::new(),
                };
                return Some(Kind::Code(language));
            }
            Markup::List(first) => Tag::List(first),
            Markup::Item => Tag::Item,
            Markup::Table(columns) => {
                self.columns = columns.into_iter().map(align).collect();
                Tag::Table
            }
            Markup::TableHead => {
                self.column = 0;
                Tag::Head
            }
            Markup::TableRow => {
                self.column = 0;
                Tag::Row
            }
            Markup::TableCell => {
                self.column += 1;
                Tag::Cell(self.columns.get(self.column - 1).copied().unwrap_or(Align::Start))
            }
            Markup::Emphasis => Tag::Emphasis,
            Markup::Strong => Tag::Strong,
            Markup::Strikethrough => Tag::Strike,
            Markup::Link { dest_url, .. } => Tag::Link(address(&dest_url)),
            Markup::Image { dest_url, .. } => Tag::Image(address(&dest_url)),
            _ => return None,
        };
        Some(Kind::Group(tag))
    }

    fn close(&mut self) {
        let Some((kind, nodes)) = self.open.pop() else { return };
        match kind {
            Some(Kind::Group(tag)) => self.push(Node::Group(tag, nodes)),
            Some(Kind::Code(language)) => {
                let text = nodes.into_iter().filter_map(|node| match node {
                    Node::Text(text) => Some(text),
                    _ => None,
                });
                self.push(Node::CodeBlock { language, text: text.collect() });
            }
            None => nodes.into_iter().for_each(|node| self.push(node)),
        }
    }

    fn push(&mut self, node: Node) {
        if let Some((_, nodes)) = self.open.last_mut() {
            nodes.push(node);
        }
    }

    /// Text that follows text belongs to it.
    fn text(&mut self, text: &str) {
        let Some((_, nodes)) = self.open.last_mut() else { return };
        match nodes.last_mut() {
            Some(Node::Text(before)) => before.push_str(text),
            _ => nodes.push(Node::Text(text.to_owned())),
        }
    }

    fn whole(mut self) -> Vec<Node> {
        while self.open.len() > 1 {
            self.close();
        }
        self.open.pop().map(|(_, nodes)| nodes).unwrap_or_default()
    }
}

fn align(alignment: Alignment) -> Align {
    match alignment {
        Alignment::None | Alignment::Left => Align::Start,
        Alignment::Center => Align::Center,
        Alignment::Right => Align::End,
    }
}

#[cfg(test)]
mod tests {
    use super::{Align, Node, Tag, parse};

    fn text(text: &str) -> Node {
        Node::Text(text.to_owned())
    }

    #[test]
    fn markdown_becomes_a_tree() {
        let nodes = parse("# Hi *you*\n\n- [x] ~~a~~\n\n```rust,ignore\nlet a;\n```\n\n---");
        assert_eq!(
            nodes,
            [
                Node::Group(
                    Tag::Heading(1),
                    vec![text("Hi "), Node::Group(Tag::Emphasis, vec![text("you")])]
                ),
                Node::Group(
                    Tag::List(None),
                    vec![Node::Group(
                        Tag::Item,
                        vec![Node::Task(true), Node::Group(Tag::Strike, vec![text("a")])]
                    )]
                ),
                Node::CodeBlock { language: "rust".to_owned(), text: "let a;\n".to_owned() },
                Node::Rule,
            ]
        );
    }

    #[test]
    fn tables_know_their_columns() {
        let nodes = parse("|a|b|\n|-:|:-:|\n|1|2|");
        let cell = |align, t: &str| Node::Group(Tag::Cell(align), vec![text(t)]);
        let head = Node::Group(Tag::Head, vec![cell(Align::End, "a"), cell(Align::Center, "b")]);
        let row = Node::Group(Tag::Row, vec![cell(Align::End, "1"), cell(Align::Center, "2")]);
        assert_eq!(nodes, [Node::Group(Tag::Table, vec![head, row])]);
    }

    #[test]
    fn html_is_text() {
        let nodes = parse("<script>alert(1)</script>\n\nan <img src=x onerror=alert(1)> image");
        assert_eq!(
            nodes,
            [
                Node::Group(Tag::Paragraph, vec![text("<script>alert(1)</script>\n")]),
                Node::Group(Tag::Paragraph, vec![text("an <img src=x onerror=alert(1)> image")]),
            ]
        );
    }

    #[test]
    fn only_harmless_addresses_are_followed() {
        for (url, followed) in [
            ("https://a.example/b", true),
            ("HTTP://a.example", true),
            ("mailto:a@b.example", true),
            ("javascript:alert(1)", false),
            ("JavaScript&colon;alert(1)", false),
            ("java&#x09;script:alert(1)", false),
            ("data:text/html,x", false),
            ("vbscript:x", false),
            ("/relative", false),
            ("//host/path", false),
        ] {
            let nodes = parse(&format!("[t](<{url}>)"));
            let [Node::Group(Tag::Paragraph, inner)] = nodes.as_slice() else { panic!("{nodes:?}") };
            let [Node::Group(Tag::Link(address), _)] = inner.as_slice() else { panic!("{inner:?}") };
            assert_eq!(address.is_some(), followed, "{url}");
        }
        let nodes = parse("![alt](https://a.example/x.png)");
        assert!(format!("{nodes:?}").contains("Image(Some"));
    }

    #[test]
    fn depth_has_an_end_and_nothing_is_lost() {
        fn depth(nodes: &[Node]) -> usize {
            let inner = |node: &Node| match node {
                Node::Group(_, nodes) => depth(nodes),
                _ => 0,
            };
            1 + nodes.iter().map(inner).max().unwrap_or(0)
        }
        let nodes = parse(&format!("{}deep `x`\n\nafter", ">".repeat(5000)));
        assert!(depth(&nodes) <= super::DEEPEST + 2);
        let shown = format!("{nodes:?}");
        assert!(shown.contains("deep") && shown.contains("after"));
        assert_eq!(nodes.len(), 2);
    }

    #[test]
    fn every_beginning_of_a_text_can_be_shown() {
        let whole = "# a\n\n| x | y |\n|---|---|\n| 1 | **2** |\n\n```py\nprint(1)\n```\n1. x\n   - [ ] y\n> q\n[l](http://a)";
        for end in 0..=whole.len() {
            parse(&whole[..end]);
        }
    }
}
