//! What can be asked for.

use std::path::PathBuf;

/// Measure casemate, its floors and other walls in one run
#[derive(Debug, clap::Parser)]
#[command(name = "casemate-bench")]
pub struct Args {
    /// The program to measure; a copy of it is used
    #[arg(long, default_value = "target/release/casemate")]
    pub program: PathBuf,
    /// How often everything but the many machines is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Measure only cases whose name contains these words; may be repeated
    #[arg(long, value_name = "WORDS")]
    pub only: Vec<String>,
    /// Boot the kernel of `casemate kernel build`, which takes some minutes to make
    #[arg(long)]
    pub built_kernel: bool,
    /// Print the names of the cases and measure nothing
    #[arg(long)]
    pub list: bool,
    /// Where raw data goes, in a folder of this run
    #[arg(long, default_value = "bench-results")]
    pub results: PathBuf,
    /// Write the tables to this document too
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/benchmarks.md")]
    pub write_docs: Option<PathBuf>,
}

impl Args {
    /// Whether a case of this name is to be measured.
    pub fn wants(&self, case: &str) -> bool {
        let case = format!(" {case} ");
        self.only.is_empty() || self.only.iter().any(|words| case.contains(&format!(" {words} ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn cases_are_chosen_by_words_of_their_name() {
        let args = Args::parse_from(["bench", "--only", "floor", "--only", "time", "--only", "many 10"]);
        assert!(args.wants("floor qemu") && args.wants("cold time") && args.wants("many 10"));
        assert!(!args.wants("cold probe") && !args.wants("many 100"));
        assert!(Args::parse_from(["bench"]).wants("cold probe"));
    }

    #[test]
    fn the_document_has_a_place_of_its_own() {
        assert_eq!(Args::parse_from(["bench"]).write_docs, None);
        let args = Args::parse_from(["bench", "--write-docs"]);
        assert_eq!(args.write_docs, Some(PathBuf::from("docs/benchmarks.md")));
    }
}
