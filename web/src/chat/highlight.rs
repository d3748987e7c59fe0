//! Colours for code: comments, strings, numbers and keywords, for most languages alike.

/// What a piece of code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing in particular.
    Plain,
    /// A comment.
    Comment,
    /// A string.
    Text,
    /// A number.
    Number,
    /// A word of the language.
    Keyword,
}

/// How a language is written.
#[derive(Debug)]
struct Language {
    /// What begins a comment that ends with its line.
    line: &'static [&'static str],
    /// What begins and ends other comments.
    block: Option<(&'static str, &'static str)>,
    /// What strings stand between.
    quotes: &'static str,
    keywords: &'static [&'static str],
}

const C_LIKE: &[&str] = &[
    "abstract",
    "as",
    "async",
    "await",
    "auto",
    "bool",
    "break",
    "case",
    "catch",
    "char",
    "class",
    "const",
    "continue",
    "crate",
    "default",
    "defer",
    "delete",
    "do",
    "double",
    "dyn",
    "else",
    "enum",
    "export",
    "extends",
    "extern",
    "false",
    "final",
    "finally",
    "float",
    "fn",
    "for",
    "from",
    "func",
    "function",
    "go",
    "if",
    "impl",
    "implements",
    "import",
    "in",
    "instanceof",
    "int",
    "interface",
    "let",
    "long",
    "loop",
    "match",
    "mod",
    "move",
    "mut",
    "namespace",
    "new",
    "nil",
    "null",
    "nullptr",
    "of",
    "package",
    "private",
    "protected",
    "pub",
    "public",
    "range",
    "ref",
    "return",
    "self",
    "Self",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "super",
    "switch",
    "template",
    "this",
    "throw",
    "trait",
    "true",
    "try",
    "type",
    "typedef",
    "typename",
    "typeof",
    "undefined",
    "union",
    "unsafe",
    "unsigned",
    "use",
    "using",
    "var",
    "virtual",
    "void",
    "where",
    "while",
    "yield",
];
const PYTHON: &[&str] = &[
    "and", "as", "assert", "async", "await", "break", "case", "class", "continue", "def", "del", "elif",
    "else", "end", "except", "False", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "match", "module", "None", "nonlocal", "not", "or", "pass", "raise", "require", "return",
    "self", "True", "try", "unless", "while", "with", "yield",
];
const SHELL: &[&str] = &[
    "case", "cd", "do", "done", "echo", "elif", "else", "esac", "exit", "export", "false", "fi", "for",
    "function", "if", "in", "local", "return", "set", "source", "sudo", "then", "true", "until", "while",
];
const SQL: &[&str] = &[
    "and", "as", "asc", "between", "by", "case", "create", "delete", "desc", "distinct", "drop", "else",
    "end", "exists", "from", "group", "having", "in", "index", "inner", "insert", "into", "is", "join",
    "key", "left", "like", "limit", "not", "null", "on", "or", "order", "outer", "primary", "right",
    "select", "set", "table", "then", "union", "update", "values", "when", "where", "with",
];

/// The language of that name, as far as it is known.
fn language(name: &str) -> Option<Language> {
    let (line, block, quotes, keywords): (&[&str], _, _, &[&str]) = match name {
        "rust" | "rs" | "wgsl" | "c" | "h" | "cpp" | "c++" | "java" | "cs" | "csharp" | "swift"
        | "kotlin" | "scala" => (&["//"], Some(("/*", "*/")), "\"", C_LIKE),
        "js" | "javascript" | "ts" | "typescript" | "jsx" | "tsx" | "go" | "php" | "dart" | "zig" => {
            (&["//"], Some(("/*", "*/")), "\"'`", C_LIKE)
        }
        "json" | "jsonc" | "css" => (&["//"], Some(("/*", "*/")), "\"'", &["true", "false", "null"]),
        "python" | "py" | "ruby" | "rb" | "julia" | "r" => (&["#"], None, "\"'", PYTHON),
        "sh" | "bash" | "shell" | "zsh" | "console" => (&["#"], None, "\"'", SHELL),
        "toml" | "yaml" | "yml" | "ini" | "dockerfile" | "make" | "makefile" => {
            (&["#", ";"], None, "\"'", &["true", "false"])
        }
        "sql" => (&["--"], Some(("/*", "*/")), "'\"", SQL),
        "html" | "xml" | "svg" => (&[], Some(("<!--", "-->")), "\"'", &[]),
        "lua" | "haskell" | "hs" => (&["--"], None, "\"", PYTHON),
        _ => return None,
    };
    Some(Language { line, block, quotes, keywords })
}

/// Cuts code into pieces; together they are the code.
pub fn pieces<'a>(name: &str, code: &'a str) -> Vec<(Kind, &'a str)> {
    let name = name.to_ascii_lowercase();
    let Some(language) = language(&name) else { return vec![(Kind::Plain, code)] };
    let folds = name == "sql";
    let mut pieces: Vec<(Kind, &str)> = vec![];
    let (mut at, mut plain) = (0, 0);
    while at < code.len() {
        let (kind, len) = next(&language, folds, &code[at..]);
        if kind != Kind::Plain {
            if plain < at {
                pieces.push((Kind::Plain, &code[plain..at]));
            }
            pieces.push((kind, &code[at..at + len]));
            plain = at + len;
        }
        at += len;
    }
    if plain < code.len() {
        pieces.push((Kind::Plain, &code[plain..]));
    }
    pieces
}

/// The piece that code begins with: what it is, and its bytes, at least one character.
fn next(language: &Language, folds: bool, code: &str) -> (Kind, usize) {
    if language.line.iter().any(|mark| code.starts_with(mark)) {
        return (Kind::Comment, code.find('\n').unwrap_or(code.len()));
    }
    if let Some((begin, end)) = language.block.filter(|(begin, _)| code.starts_with(begin)) {
        let inner = &code[begin.len()..];
        return (Kind::Comment, inner.find(end).map_or(code.len(), |at| begin.len() + at + end.len()));
    }
    let first = code.chars().next().unwrap_or_default();
    if language.quotes.contains(first) {
        return (Kind::Text, string(first, code));
    }
    let word = code.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len());
    if first.is_ascii_digit() {
        let rest = &code[word..];
        let fraction = rest.strip_prefix('.').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let digits = |rest: &str| rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        return (Kind::Number, word + fraction.map_or(0, |rest| 1 + digits(rest)));
    }
    if word == 0 {
        return (Kind::Plain, first.len_utf8());
    }
    let text = &code[..word];
    let known = language.keywords.iter().any(|k| *k == text || (folds && k.eq_ignore_ascii_case(text)));
    (if known { Kind::Keyword } else { Kind::Plain }, word)
}

/// Bytes of a string with its quotes. One that is not ended ends with its line, unless three quotes began it.
fn string(quote: char, code: &str) -> usize {
    let long = code.len() >= 3 && code.chars().take(3).all(|c| c == quote) && quote != '`';
    if long {
        let end: String = [quote; 3].iter().collect();
        return code[3..].find(&end).map_or(code.len(), |at| at + 6);
    }
    let mut escaped = false;
    for (at, c) in code.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' if quote != '`' => return at,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::{Kind, pieces};

    #[test]
    fn pieces_are_named_and_nothing_is_lost() {
        let code = "fn f() { let s = \"a\\\"b\"; // c\u{fc}\n/* d\n*/ 0x1F + 1.5 }";
        let found = pieces("Rust", code);
        assert_eq!(found.iter().map(|(_, text)| *text).collect::<String>(), code);
        let named: Vec<_> = found.into_iter().filter(|(kind, _)| *kind != Kind::Plain).collect();
        assert_eq!(
            named,
            [
                (Kind::Keyword, "fn"),
                (Kind::Keyword, "let"),
                (Kind::Text, "\"a\\\"b\""),
                (Kind::Comment, "// c\u{fc}"),
                (Kind::Comment, "/* d\n*/"),
                (Kind::Number, "0x1F"),
                (Kind::Number, "1.5"),
            ]
        );
    }

    #[test]
    fn every_beginning_of_code_is_cut_without_loss() {
        let code = "'''d\u{f6}c\n''' # \u{1f98a}\ndef a(): return 'x' + \"\"\"y\"\"\" \\ 'open\n--` /* 1.";
        for name in ["python", "js", "sql", "html", "toml", "sh", "unknown", ""] {
            for end in (0..=code.len()).filter(|&end| code.is_char_boundary(end)) {
                let whole: String = pieces(name, &code[..end]).iter().map(|(_, text)| *text).collect();
                assert_eq!(whole, code[..end], "{name}");
            }
        }
    }

    #[test]
    fn languages_differ() {
        assert_eq!(pieces("sql", "SELECT"), [(Kind::Keyword, "SELECT")]);
        assert_eq!(pieces("python", "# x"), [(Kind::Comment, "# x")]);
        assert_eq!(pieces("rust", "'a"), [(Kind::Plain, "'a")]);
        assert_eq!(pieces("brainfuck", "fn"), [(Kind::Plain, "fn")]);
    }
}
