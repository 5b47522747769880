//! Comments of a contract as documentation in Rust: nothing that is written there is compiled or judged as Rust.

/// What carries a comment is not judged by how it is laid out, nor by its name: both are the contract's.
pub(crate) const ALLOW: &str = "#[allow(nonstandard_style, clippy::all, rustdoc::all)]";

/// A comment of the contract as a doc comment, indented.
pub(crate) fn doc(comment: &str, indent: &str) -> String {
    let mut lines = Vec::new();
    // The mark that ends the block of code in which the line is.
    let mut block = None;
    for line in comment.lines() {
        let line = line.strip_prefix(' ').unwrap_or(line).trim_end();
        match (block, mark(line)) {
            // A block that names no other language is Rust to rustdoc, and run as a test. It begins at the margin: within a list or a
            // quote it would end with them.
            (None, Some((mark, _))) => {
                block = Some(mark);
                lines.push(format!("{mark}text"));
            }
            (Some(begun), Some((mark, ""))) if mark.starts_with(begun) => {
                block = None;
                lines.push(mark.to_owned());
            }
            (Some(_), _) => lines.push(line.to_owned()),
            (None, None) => lines.push(prose(line)),
        }
    }
    lines.extend(block.map(str::to_owned));
    let line = |line: String| if line.is_empty() { format!("{indent}///\n") } else { format!("{indent}/// {line}\n") };
    lines.into_iter().map(line).collect()
}

/// The mark of three or more with which a line begins or ends a block of code, in a list or a quote too, and what comes after it.
fn mark(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || c.is_ascii_digit() || ">-+*.)".contains(c));
    let sign = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let (mark, rest) = line.split_at(line.len() - line.trim_start_matches(sign).len());
    // Another one in the same line makes it code within a line.
    (mark.len() >= 3 && (sign == '~' || !rest.contains('`'))).then_some((mark, rest))
}

/// A line of text. Four spaces more at its beginning, or after the sign of a list, would make it code.
fn prose(line: &str) -> String {
    let text = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let before = line.chars().take_while(|c| c.is_whitespace());
    let indent: usize = before.map(|c| if c == '\t' { 4 } else { 1 }).sum();
    let parts: Vec<&str> = text.split('`').collect();
    // Every other part is code, unless one begins or ends in another line.
    let paired = parts.len() % 2 == 1;
    let part = |(at, part): (usize, &&str)| if paired && at % 2 == 1 { (*part).to_owned() } else { linked(part) };
    let parts: Vec<String> = parts.iter().enumerate().map(part).collect();
    format!("{}{}", " ".repeat(if text.is_empty() { 0 } else { indent.min(3) }), parts.join("`"))
}

/// Text whose URLs are links. Other brackets and angles would be taken for links and HTML.
fn linked(text: &str) -> String {
    let escaped = |text: &str| text.replace('[', "\\[").replace('<', "\\<");
    let Some(at) = ["http://", "https://"].iter().filter_map(|scheme| text.find(scheme)).min() else {
        return escaped(text);
    };
    let (before, rest) = text.split_at(at);
    let end = rest.find(|c: char| c == ' ' || "<>()[]\"".contains(c)).unwrap_or(rest.len());
    let (url, after) = rest.split_at(rest[..end].trim_end_matches([',', '.', ':', ';', '!', '?', '\'']).len());
    let (before, after) = match (before.strip_suffix('<'), after.strip_prefix('>')) {
        (Some(before), Some(after)) => (before, after),
        _ => (before, after),
    };
    format!("{}<{url}>{}", escaped(before), linked(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_code_unless_it_says_so() {
        for (comment, expected) in [
            (" One,\n two.\n", "/// One,\n/// two.\n"),
            ("One:\n\n     {\"sku\": \"tea\"}\n", "/// One:\n///\n///    {\"sku\": \"tea\"}\n"),
            ("-\t\tone\n\ttwo", "/// - one\n///    two\n"),
            ("Of `Vec<[u8]>` a <b>, a [c].", "/// Of `Vec<[u8]>` a \\<b>, a \\[c].\n"),
            ("Begun `in <one>\n and ended` in another", "/// Begun `in \\<one>\n/// and ended` in another\n"),
            ("```of <T>``` a line", "/// ```of <T>``` a line\n"),
        ] {
            assert_eq!(doc(comment, ""), expected);
        }
    }

    #[test]
    fn a_block_of_code_is_text_and_ends() {
        for (comment, expected) in [
            ("```\n [\"tea\"]\n ```\n[a]", "/// ```text\n/// [\"tea\"]\n/// ```\n/// \\[a]\n"),
            ("```rust\n  ~~~\n````", "/// ```text\n///  ~~~\n/// ````\n"),
            ("~~~~ json\n~~~\n~~~~ x", "/// ~~~~text\n/// ~~~\n/// ~~~~ x\n/// ~~~~\n"),
            ("1. > ```\n   <a>\n   ```", "/// ```text\n///   <a>\n/// ```\n"),
            ("```", "/// ```text\n/// ```\n"),
        ] {
            assert_eq!(doc(comment, ""), expected);
        }
    }

    #[test]
    fn a_url_is_a_link() {
        for (comment, expected) in [
            ("See https://a.example/b?c=[d", "See <https://a.example/b?c=>\\[d"),
            ("<https://a.example>, (http://b.example).", "<https://a.example>, (<http://b.example>)."),
            ("[a](https://a.example/): <https://b", "\\[a](<https://a.example/>): \\<<https://b>"),
            ("`curl https://a.example` or https://", "`curl https://a.example` or <https://>"),
        ] {
            assert_eq!(doc(comment, ""), format!("/// {expected}\n"));
        }
    }
}
