//! Tables of text: columns as wide as their widest cell, the last one cut at the terminal's edge.

use console::{Style, measure_text_width, truncate_str};

/// A cell and how it looks on a terminal.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell with a style.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }

    /// A cell that says that something is good (green) or not (red).
    pub fn verdict(text: impl Into<String>, good: bool) -> Self {
        Self::styled(text, if good { Style::new().green() } else { Style::new().red() })
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// Lays out rows below a header line.
pub fn table<const N: usize>(header: [&str; N], rows: &[[Cell; N]], width: Option<usize>) -> String {
    let header = header.map(|title| Cell::styled(title, Style::new().bold()));
    let rows: Vec<&[Cell; N]> = std::iter::once(&header).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| measure_text_width(&row[column].text)).max().unwrap_or(0)
    });
    let before_last: usize = widths[..N - 1].iter().map(|width| width + 2).sum();
    // A terminal too narrow for the columns before the last one wraps anyway.
    let last = width.and_then(|width| width.checked_sub(before_last)).filter(|&room| room >= 10);
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let text = match last {
                Some(room) if column == N - 1 => truncate_str(&cell.text, room, "…"),
                _ => cell.text.as_str().into(),
            };
            let pad = if column == N - 1 { 0 } else { widths[column] + 2 - measure_text_width(&text) };
            line.push_str(&cell.style.apply_to(text).to_string());
            line.extend(std::iter::repeat_n(' ', pad));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_is_cut() {
        let rows = [["a".into(), "a long description".into()], ["wide-ä".into(), "b".into()]];
        let whole = table(["NAME", "WHAT"], &rows, None);
        assert_eq!(whole, "NAME    WHAT\na       a long description\nwide-ä  b\n");
        let cut = table(["NAME", "WHAT"], &rows, Some(20));
        assert_eq!(cut, "NAME    WHAT\na       a long desc…\nwide-ä  b\n");
    }
}
