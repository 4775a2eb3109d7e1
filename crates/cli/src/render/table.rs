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

/// Lays out rows below a header line. A column in which nothing stands is left out.
pub fn table<const N: usize>(header: [&str; N], rows: &[[Cell; N]], width: Option<usize>) -> String {
    let header = header.map(|title| Cell::styled(title, Style::new().bold()));
    let rows: Vec<&[Cell; N]> = std::iter::once(&header).chain(rows).collect();
    let width_of = |column: usize| {
        rows.iter().map(|row| measure_text_width(&row[column].text)).max().filter(|&width| width > 0)
    };
    let columns: Vec<(usize, usize)> =
        (0..N).filter_map(|column| Some((column, width_of(column)?))).collect();
    let Some((&(last, _), before)) = columns.split_last() else { return String::new() };
    let before_last: usize = before.iter().map(|(_, width)| width + 2).sum();
    // A terminal too narrow for the columns before the last one wraps anyway.
    let room = width.and_then(|width| width.checked_sub(before_last)).filter(|&room| room >= 10);
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for &(column, width) in &columns {
            let cell = &row[column];
            let text = match room {
                Some(room) if column == last => truncate_str(&cell.text, room, "…"),
                _ => cell.text.as_str().into(),
            };
            let pad = if column == last { 0 } else { width + 2 - measure_text_width(&text) };
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

    #[test]
    fn a_column_of_nothing_is_left_out() {
        let rows =
            [["a".into(), "".into(), "b".into(), "".into()], ["c".into(), "".into(), "d".into(), "".into()]];
        assert_eq!(table(["X", "", "Y", ""], &rows, Some(80)), "X  Y\na  b\nc  d\n");
        assert_eq!(table(["X", "", "Y", "Z"], &rows, None), "X  Y  Z\na  b\nc  d\n");
        assert_eq!(table([""], &[], None), "");
    }
}
