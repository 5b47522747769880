//! Comments of a contract as documentation in Rust.

/// A comment of the contract as a doc comment, indented.
pub(crate) fn doc(comment: &str, indent: &str) -> String {
    // Brackets and angles would be taken for links and HTML.
    let line = |line: &str| {
        let line = line.trim_end().replace('[', "\\[").replace('<', "\\<");
        let line = line.strip_prefix(' ').unwrap_or(&line).to_owned();
        if line.is_empty() { format!("{indent}///\n") } else { format!("{indent}/// {line}\n") }
    };
    comment.lines().map(line).collect()
}
