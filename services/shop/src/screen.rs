//! Where the shop writes for people: colours on a terminal, plain text everywhere else.

use std::{
    env, fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

/// A colour, by what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As everything else.
    Plain,
    /// What stands back.
    Faint,
    /// What stands out.
    Title,
    /// What went well.
    Good,
    /// What was refused or failed.
    Bad,
    /// What is taken back.
    Undo,
}

/// The standard output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    terminal: bool,
    colours: bool,
}

/// Between two looks at what is shown live.
const LOOK: Duration = Duration::from_millis(500);

impl Screen {
    /// The standard output, coloured if it is a terminal and `NO_COLOR` doesn't say otherwise.
    #[must_use]
    pub fn stdout() -> Self {
        let wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = env::var_os("TERM").is_none_or(|term| term != "dumb");
        let terminal = io::stdout().is_terminal() && able;
        Self { terminal, colours: terminal && wanted }
    }

    /// An output without colours.
    #[must_use]
    pub fn plain() -> Self {
        Self { terminal: false, colours: false }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn line(&self, line: impl fmt::Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// Shows lines that change: on a terminal again and again in the same place until Ctrl-C, else once.
    ///
    /// # Errors
    /// The lines' own, and when nobody reads any more.
    pub async fn live<L>(&self, lines: impl Fn() -> L) -> anyhow::Result<()>
    where
        L: Future<Output = anyhow::Result<Vec<String>>>,
    {
        let show = async {
            loop {
                let lines = lines().await?.join("\n");
                if !self.terminal {
                    return Ok(self.line(lines)?);
                }
                self.line(format!("\u{1b}[H\u{1b}[2J{lines}"))?;
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            shown = show => shown,
            stopped = tokio::signal::ctrl_c() => Ok(stopped?),
        }
    }

    /// A text in a tone.
    pub fn paint(&self, tone: Tone, text: impl fmt::Display) -> String {
        let text = printable(&text.to_string());
        let code = match tone {
            Tone::Plain => return text,
            Tone::Faint => "2",
            Tone::Title => "1",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Undo => "33",
        };
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text }
    }
}

/// A text without anything that a terminal would obey: what it says may be a stranger's words.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = |letter: char| if is_obeyed(letter) { letter.escape_default().collect() } else { letter.to_string() };
    text.chars().map(shown).collect()
}

/// What moves the cursor or begins a line, and what turns the letters around it: they would stand in another order than they are read in.
fn is_obeyed(letter: char) -> bool {
    let breaks = matches!(letter, '\u{2028}' | '\u{2029}');
    let turns =
        matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    letter.is_control() || breaks || turns
}
