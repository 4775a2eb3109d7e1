//! Tables that read well as they are and as Markdown.

/// A table in Markdown, its columns aligned.
pub fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let rows: Vec<[String; COLUMNS]> =
        rows.iter().map(|row| row.clone().map(|cell| harmless(&cell))).collect();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count(), 3]).max().unwrap_or_default()
    });
    let line = |cells: [&str; COLUMNS]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule: String = widths.iter().map(|width| format!(" {} |", "-".repeat(*width))).collect();
    let body: String =
        rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str()))).collect();
    format!("{}|{rule}\n{body}", line(head))
}

/// One line, in which no character ends a cell.
fn harmless(cell: &str) -> String {
    cell.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_stay_cells() {
        let rows = [["a × b".to_owned(), "1".to_owned()], ["c|d\ne".to_owned(), "12345".to_owned()]];
        let expected = "\
| name   | value |
| ------ | ----- |
| a × b  | 1     |
| c\\|d e | 12345 |
";
        assert_eq!(table(["name", "value"], &rows), expected);
    }
}
