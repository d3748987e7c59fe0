//! Markdown on the page: nodes of the document, made one by one.

use leptos::prelude::*;

use super::super::icons::{Icon, path};
use super::files::copy;
use crate::chat::highlight::{self, Kind};
use crate::chat::markdown::{Align, Node, Tag, parse};

/// A text as it grows. Blocks that stay the same stay in the document.
#[component]
pub(super) fn Markdown(
    /// The text.
    #[prop(into)]
    text: Signal<String>,
) -> impl IntoView {
    let blocks = Memo::new(move |_| text.with(|text| parse(text)));
    let count = Memo::new(move |_| blocks.with(Vec::len));
    let block = move |index: usize| {
        let node = Memo::new(move |_| blocks.with(|blocks| blocks.get(index).cloned()));
        let code = Memo::new(move |_| matches!(node.get(), Some(Node::CodeBlock { .. })));
        move || {
            if code.get() {
                view! { <Code block=node/> }.into_any()
            } else {
                (move || node.get().map(|node| show(&node))).into_any()
            }
        }
    };
    view! { <div class="markdown"><For each=move || 0..count.get() key=|index| *index children=block/></div> }
}

fn all(nodes: &[Node]) -> Vec<AnyView> {
    nodes.iter().map(show).collect()
}

fn show(node: &Node) -> AnyView {
    match node {
        Node::Text(text) => text.clone().into_any(),
        Node::Code(text) => view! { <code dir="ltr">{text.clone()}</code> }.into_any(),
        Node::CodeBlock { .. } => {
            let block = Some(node.clone());
            view! { <Code block=Signal::derive(move || block.clone())/> }.into_any()
        }
        Node::Break => view! { <br/> }.into_any(),
        Node::Rule => view! { <hr/> }.into_any(),
        Node::Task(done) => {
            let label = if *done { "Done" } else { "To do" };
            view! { <input type="checkbox" disabled aria-label=label checked=*done/> }.into_any()
        }
        Node::Group(tag, nodes) => group(tag, nodes),
    }
}

fn group(tag: &Tag, nodes: &[Node]) -> AnyView {
    let inner = all(nodes);
    match tag {
        Tag::Paragraph => view! { <p dir="auto">{inner}</p> }.into_any(),
        // The page's own headings stand above an answer's.
        Tag::Heading(1) => view! { <h3 dir="auto">{inner}</h3> }.into_any(),
        Tag::Heading(2) => view! { <h4 dir="auto">{inner}</h4> }.into_any(),
        Tag::Heading(3) => view! { <h5 dir="auto">{inner}</h5> }.into_any(),
        Tag::Heading(_) => view! { <h6 dir="auto">{inner}</h6> }.into_any(),
        Tag::Quote => view! { <blockquote dir="auto">{inner}</blockquote> }.into_any(),
        Tag::List(None) => view! { <ul dir="auto">{inner}</ul> }.into_any(),
        Tag::List(Some(first)) => view! { <ol dir="auto" start=first.to_string()>{inner}</ol> }.into_any(),
        Tag::Item => view! { <li dir="auto">{inner}</li> }.into_any(),
        Tag::Table => table(nodes),
        Tag::Head | Tag::Row => row(nodes, *tag == Tag::Head),
        Tag::Cell(align) => view! { <td class=class(*align) dir="auto">{inner}</td> }.into_any(),
        Tag::Emphasis => view! { <em>{inner}</em> }.into_any(),
        Tag::Strong => view! { <strong>{inner}</strong> }.into_any(),
        Tag::Strike => view! { <del>{inner}</del> }.into_any(),
        Tag::Link(Some(url)) => link(url, inner),
        Tag::Link(None) => view! { <span>{inner}</span> }.into_any(),
        Tag::Image(url) => {
            let named = view! { <span class="image">"Image: "{inner}</span> }.into_any();
            match url {
                Some(url) => link(url, vec![named]),
                None => named,
            }
        }
    }
}

fn link(url: &str, inner: Vec<AnyView>) -> AnyView {
    let url = url.to_owned();
    view! { <a href=url.clone() title=url target="_blank" rel="noopener noreferrer nofollow">{inner}</a> }
        .into_any()
}

fn table(rows: &[Node]) -> AnyView {
    let (head, body) = rows.split_at(rows.len().min(1));
    view! {
        <div class="table" tabindex="0" role="region" aria-label="Table">
            <table><thead>{all(head)}</thead><tbody>{all(body)}</tbody></table>
        </div>
    }
    .into_any()
}

fn row(cells: &[Node], head: bool) -> AnyView {
    let cell = |cell: &Node| match cell {
        Node::Group(Tag::Cell(align), inner) if head => {
            view! { <th scope="col" class=class(*align) dir="auto">{all(inner)}</th> }.into_any()
        }
        other => show(other),
    };
    view! { <tr>{cells.iter().map(cell).collect::<Vec<_>>()}</tr> }.into_any()
}

fn class(align: Align) -> &'static str {
    match align {
        Align::Start => "start",
        Align::Center => "center",
        Align::End => "end",
    }
}

#[component]
fn Code(#[prop(into)] block: Signal<Option<Node>>) -> impl IntoView {
    let parts = move || match block.get() {
        Some(Node::CodeBlock { language, text }) => (language, text),
        _ => Default::default(),
    };
    let language = Memo::new(move |_| parts().0);
    let label = move || if language.get().is_empty() { "text".to_owned() } else { language.get() };
    let copied = RwSignal::new(false);
    let pieces = move || {
        let (language, text) = parts();
        let pieces = highlight::pieces(&language, &text).into_iter();
        pieces.map(|(kind, text)| piece(kind, text)).collect::<Vec<_>>()
    };
    view! {
        <figure class="code" dir="ltr">
            <figcaption>
                <span>{label}</span>
                <button type="button" class="quiet" data-testid="copy-code" on:click=move |_| copy(parts().1, copied)>
                    <Icon path=path::COPY/>{move || if copied.get() { "Copied" } else { "Copy" }}
                </button>
            </figcaption>
            <pre tabindex="0" role="region" aria-label="Code"><code>{pieces}</code></pre>
        </figure>
    }
}

fn piece(kind: Kind, text: &str) -> AnyView {
    let text = text.to_owned();
    let class = match kind {
        Kind::Plain => return text.into_any(),
        Kind::Comment => "comment",
        Kind::Text => "string",
        Kind::Number => "number",
        Kind::Keyword => "keyword",
    };
    view! { <span class=class>{text}</span> }.into_any()
}
