//! Enough of Rust's grammar to judge a text: what is code, what is test code, which paths it names, how long its
//! functions are.
//!
//! Not a parser. It counts brackets in text whose comments and literals were blanked, which formatted code that
//! compiles makes safe; code inside macros is seen like any other.

/// A function's name, the line it starts on (from 1) and how many lines it has.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub line: usize,
    pub line_count: usize,
}

/// A path that code names, and the line (from 1).
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub line: usize,
    pub path: String,
}

/// The text with every comment and literal turned into blanks; lines and offsets stay where they were.
pub fn code(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut at = 0;
    while at < bytes.len() {
        match literal_end(text.as_bytes(), at) {
            Some(end) => {
                blank(&mut bytes, at, end);
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(bytes).expect("only whole characters were blanked")
}

/// `code` without items under `#[cfg(test)]`.
pub fn code_without_tests(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let code = code(text);
    let mut bytes = code.clone().into_bytes();
    for (start, _) in code.match_indices(MARK) {
        let end = item_end(code.as_bytes(), start + MARK.len());
        blank(&mut bytes, start, end);
    }
    String::from_utf8(bytes).expect("only whole characters were blanked")
}

/// Every path that `use` brings in, with its groups spread out: `use a::{b, c::{d}}` names `a::b` and `a::c::d`.
pub fn used_paths(code: &str) -> Vec<Named> {
    let mut named = Vec::new();
    for start in words(code, "use") {
        let rest = &code[start + "use".len()..];
        let Some(end) = rest.find(';') else { continue };
        // `use<'a>` captures lifetimes and brings in nothing.
        if rest.starts_with(|first: char| first.is_whitespace()) {
            spread("", &rest[..end], line_of(code, start), &mut named);
        }
    }
    named
}

/// The lines on which `path` is named, in a `use` or in place. `a::` stands for the crate `a` with whatever follows,
/// and not for a module `x::a`; anything else may have a longer path before it.
pub fn lines_naming(code: &str, path: &str) -> Vec<usize> {
    let root = path.trim_end_matches("::");
    let inside = |used: &str| used.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let used = used_paths(code).into_iter().filter(|named| inside(&named.path)).map(|named| named.line);
    let in_place = words(code, root)
        .filter(|&at| root == path || (code[at..].starts_with(path) && !code[..at].ends_with(':')))
        .map(|at| line_of(code, at));
    let mut lines: Vec<usize> = used.chain(in_place).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// Functions with a body, in order; closures count as part of the function around them.
pub fn functions(code: &str) -> Vec<Function> {
    let mut functions = Vec::new();
    for start in words(code, "fn") {
        let rest = code[start + "fn".len()..].trim_start();
        let name: String = rest.chars().take_while(|&each| is_word(each)).collect();
        if name.is_empty() {
            continue; // a function pointer's type
        }
        let end = item_end(code.as_bytes(), start);
        if code[..end].ends_with('}') {
            let line = line_of(code, start);
            functions.push(Function { name, line, line_count: line_of(code, end - 1) - line + 1 });
        }
    }
    functions
}

/// Offsets at which `word` stands with no identifier character touching it.
pub fn words(code: &str, word: &str) -> impl Iterator<Item = usize> {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The line (from 1) of an offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn is_word(each: char) -> bool {
    each.is_alphanumeric() || each == '_'
}

fn blank(bytes: &mut [u8], start: usize, end: usize) {
    for byte in &mut bytes[start..end] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

/// Where the comment or literal that starts at `at` ends; `None` if none starts there.
fn literal_end(text: &[u8], at: usize) -> Option<usize> {
    let rest = &text[at..];
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(at + block_comment_length(rest));
    }
    match rest[0] {
        b'"' => Some(at + quoted_length(rest)),
        b'\'' => character_length(rest).map(|length| at + length),
        b'r' => {
            let before = at.checked_sub(1).map(|index| text[index]);
            // `br"` and `cr"` have their letter before; any other word merely ends in r.
            let prefix = before.is_some_and(|byte| byte == b'b' || byte == b'c') && !word_byte(text, at, 2);
            (prefix || !word_byte(text, at, 1)).then(|| raw_length(rest)).flatten().map(|length| at + length)
        }
        _ => None,
    }
}

/// Whether the byte `back` places before `at` belongs to a word.
fn word_byte(text: &[u8], at: usize, back: usize) -> bool {
    at.checked_sub(back).is_some_and(|index| text[index].is_ascii_alphanumeric() || text[index] == b'_')
}

fn block_comment_length(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn quoted_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `'x'` and `'\n'` are characters; `'a` is a lifetime.
fn character_length(text: &[u8]) -> Option<usize> {
    if text.get(1) == Some(&b'\\') {
        return text.iter().skip(3).position(|&byte| byte == b'\'').map(|length| length + 4);
    }
    let width = match text.get(1)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    (text.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// `r"..."` and `r#"..."#`; `r#name` is no literal.
fn raw_length(text: &[u8]) -> Option<usize> {
    let hashes = text[1..].iter().take_while(|&&byte| byte == b'#').count();
    if text.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = &text[2 + hashes..];
    let length = body.windows(end.len()).position(|window| window == end).map(|length| length + end.len());
    Some(2 + hashes + length.unwrap_or(body.len()))
}

/// Where the item that starts at `start` ends: behind its `;`, or behind the body in braces.
fn item_end(code: &[u8], start: usize) -> usize {
    let mut depth = 0_usize; // of round and square brackets: a `;` in `[u8; 4]` ends nothing
    for at in start..code.len() {
        match code[at] {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return at + 1,
            b'{' if depth == 0 => return braces_end(code, at),
            _ => {}
        }
    }
    code.len()
}

fn braces_end(code: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn spread(prefix: &str, tree: &str, line: usize, named: &mut Vec<Named>) {
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, each) in tree.char_indices().chain([(tree.len(), ',')]) {
        match each {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                let item = tree[start..at].trim();
                start = at + 1;
                match item.split_once('{') {
                    Some((before, group)) => {
                        let group = group.strip_suffix('}').unwrap_or(group);
                        spread(&format!("{prefix}{}", before.trim()), group, line, named);
                    }
                    None if item.is_empty() => {}
                    None => {
                        let item = item.split_whitespace().next().unwrap_or_default(); // drops `as name`
                        named.push(Named { line, path: format!("{prefix}{item}") });
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(code: &str) -> Vec<String> {
        used_paths(code).into_iter().map(|named| named.path).collect()
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        for (text, expected) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x{\"y") g"#, "f(       ) g"),
            ("r#\"a\"b\"# c", "         c"),
            ("br\"a\" c", "b     c"),
            ("var\"a\" c", "var    c"),
            ("r#type", "r#type"),
            (r"'{' '\'' '\u{7d}' 'é';", "                      ;"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn test_items_are_left_out() {
        let text = "use a;\n#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\nmod more {\n    fn g() {}\n}\nfn h() {}";
        let kept: Vec<String> = functions(&code_without_tests(text)).into_iter().map(|each| each.name).collect();
        assert_eq!(kept, ["f", "h"]);
        assert!(!code_without_tests(text).contains("mod"));
    }

    #[test]
    fn use_groups_are_spread() {
        let code = "use a::{b, c::{self, d as e}, f::*};\npub use crate::g;\nfn x() -> impl Y + use<'a> {}";
        assert_eq!(paths(code), ["a::b", "a::c::self", "a::c::d", "a::f::*", "crate::g"]);
        assert_eq!(paths("because::x; user::y;"), [""; 0]);
    }

    #[test]
    fn a_path_is_found_in_use_and_in_place() {
        let code = "use std::{io, fs};\nstd::fs::read();\nmystd::fs();\nstd::fsync();\nx::rand::y();\nlet rand = 1;";
        assert_eq!(lines_naming(code, "std::fs"), [1, 2]);
        assert_eq!(lines_naming("std::time::Instant::now();", "Instant::now"), [1]);
        assert!(lines_naming(code, "rand::").is_empty());
        assert_eq!(lines_naming("use rand;\nrand::random();", "rand::"), [1, 2]);
    }

    #[test]
    fn functions_are_measured_from_signature_to_brace() {
        let text =
            "trait T { fn a(&self); }\nfn b() -> [u8; 2]\nwhere X: Y\n{\n    if c { d() }\n}\ntype F = fn(u8);\n";
        assert_eq!(functions(&code(text)), [Function { name: "b".into(), line: 2, line_count: 5 }]);
    }
}
