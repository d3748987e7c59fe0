//! Assembles kernel sources: WGSL files with constants, `#include`, `#if` and unrolled `#for`.
//!
//! Directives stand alone on a line: `#include FILE`, `#if NAME` / `#else` / `#end`, `#for i in A..B` / `#end`.
//! A name is a parameter of the kernel; `A` and `B` are numbers or names. `$i` and `$NAME` are replaced by the
//! number. Every parameter is also a WGSL `const` of type u32. Loops are unrolled here rather than by the driver
//! because accumulators must live in registers on every platform, and drivers differ in what they unroll.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The parameters of a kernel, by name.
pub(crate) type Params = BTreeMap<&'static str, u32>;

const FILES: &[(&str, &str)] = &[
    ("add.wgsl", include_str!("wgsl/add.wgsl")),
    ("attention.wgsl", include_str!("wgsl/attention.wgsl")),
    ("attention_combine.wgsl", include_str!("wgsl/attention_combine.wgsl")),
    ("combine.wgsl", include_str!("wgsl/combine.wgsl")),
    ("embed.wgsl", include_str!("wgsl/embed.wgsl")),
    ("gather_rows.wgsl", include_str!("wgsl/gather_rows.wgsl")),
    ("kv.wgsl", include_str!("wgsl/kv.wgsl")),
    ("kv_append.wgsl", include_str!("wgsl/kv_append.wgsl")),
    ("linear.wgsl", include_str!("wgsl/linear.wgsl")),
    ("reduce.wgsl", include_str!("wgsl/reduce.wgsl")),
    ("rms_norm.wgsl", include_str!("wgsl/rms_norm.wgsl")),
    ("rope.wgsl", include_str!("wgsl/rope.wgsl")),
    ("rotate.wgsl", include_str!("wgsl/rotate.wgsl")),
    ("round.wgsl", include_str!("wgsl/round.wgsl")),
    ("router_top_k.wgsl", include_str!("wgsl/router_top_k.wgsl")),
    ("swiglu.wgsl", include_str!("wgsl/swiglu.wgsl")),
    ("weights.wgsl", include_str!("wgsl/weights.wgsl")),
    ("format/f32.wgsl", include_str!("wgsl/format/f32.wgsl")),
    ("format/f16.wgsl", include_str!("wgsl/format/f16.wgsl")),
    ("format/bf16.wgsl", include_str!("wgsl/format/bf16.wgsl")),
    ("format/f8_e4m3.wgsl", include_str!("wgsl/format/f8_e4m3.wgsl")),
    ("format/q8_0.wgsl", include_str!("wgsl/format/q8_0.wgsl")),
    ("format/q4_0.wgsl", include_str!("wgsl/format/q4_0.wgsl")),
    ("format/q4_1.wgsl", include_str!("wgsl/format/q4_1.wgsl")),
    ("format/q4_k.wgsl", include_str!("wgsl/format/q4_k.wgsl")),
    ("format/q6_k.wgsl", include_str!("wgsl/format/q6_k.wgsl")),
];

/// The WGSL of `file` under `params`; `#include FORMAT` takes `format`.
///
/// # Panics
/// When a file breaks the rules above: a bug of the file, which the test over all kernels finds.
pub(crate) fn assemble(file: &str, format: Option<&str>, params: &Params) -> String {
    let mut text = String::new();
    for (name, value) in params {
        let _ = writeln!(text, "const {name} = {value}u;");
    }
    let lines: Vec<&str> = find(file).lines().collect();
    expand(&lines, format, params, &mut BTreeMap::new(), &mut text);
    text
}

fn find(file: &str) -> &'static str {
    FILES.iter().find(|(name, _)| *name == file).unwrap_or_else(|| panic!("no WGSL file {file}")).1
}

fn expand(
    lines: &[&str],
    format: Option<&str>,
    params: &Params,
    vars: &mut BTreeMap<String, u32>,
    out: &mut String,
) {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].trim();
        at += 1;
        let number = |name: &str, vars: &BTreeMap<String, u32>| -> u32 {
            let found = name.parse().ok().or_else(|| vars.get(name).or_else(|| params.get(name)).copied());
            found.unwrap_or_else(|| panic!("`{name}` in `{line}` is neither a number nor a parameter"))
        };
        if let Some(file) = line.strip_prefix("#include ") {
            let file = if file == "FORMAT" { format.expect("the kernel reads weights") } else { file };
            let included: Vec<&str> = find(file).lines().collect();
            expand(&included, format, params, vars, out);
        } else if let Some(name) = line.strip_prefix("#if ") {
            let (body, otherwise, after) = block(lines, at);
            let chosen = if number(name, vars) != 0 { body } else { otherwise };
            expand(chosen, format, params, vars, out);
            at = after;
        } else if let Some(loop_head) = line.strip_prefix("#for ") {
            let (var, range) = loop_head.split_once(" in ").expect("#for NAME in A..B");
            let (first, end) = range.split_once("..").expect("#for NAME in A..B");
            let (body, _, after) = block(lines, at);
            for value in number(first, vars)..number(end, vars) {
                vars.insert(var.to_owned(), value);
                expand(body, format, params, vars, out);
            }
            vars.remove(var);
            at = after;
        } else if !line.is_empty() && !line.starts_with("//") {
            let mut text = lines[at - 1].to_owned();
            if text.contains('$') {
                for (name, value) in
                    vars.iter().map(|(k, v)| (k.as_str(), v)).chain(params.iter().map(|(k, v)| (*k, v)))
                {
                    text = text.replace(&format!("${name}"), &value.to_string());
                }
            }
            out.push_str(&text);
            out.push('\n');
        }
    }
}

/// The lines from `start` to the matching `#else` and `#end`, and the index behind it.
fn block<'a, 'b>(lines: &'b [&'a str], start: usize) -> (&'b [&'a str], &'b [&'a str], usize) {
    let (mut depth, mut middle) = (0, None);
    for (i, line) in lines.iter().enumerate().skip(start) {
        let line = line.trim();
        if line.starts_with("#if ") || line.starts_with("#for ") {
            depth += 1;
        } else if line == "#else" && depth == 0 {
            middle = Some(i);
        } else if line == "#end" {
            if depth == 0 {
                return match middle {
                    Some(m) => (&lines[start..m], &lines[m + 1..i], i + 1),
                    None => (&lines[start..i], &[], i + 1),
                };
            }
            depth -= 1;
        }
    }
    panic!("no #end for line {start}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_and_conditions_expand() {
        let params = Params::from([("N", 2), ("ON", 0)]);
        let source =
            ["#for i in 0..N", "#if ON", "a$i", "#else", "b$i = $N;", "#end", "#end", "// gone", "c"];
        let mut out = String::new();
        expand(&source, None, &params, &mut BTreeMap::new(), &mut out);
        assert_eq!(out, "b0 = 2;\nb1 = 2;\nc\n");
    }
}
