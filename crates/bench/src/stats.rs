//! What many values are summed up to.

use serde::Serialize;

/// How many values a percentile of the tail needs to mean something.
const ENOUGH_FOR_P99: usize = 100;

/// A summary of the values of one series.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// The middle one; of an even number the mean of the middle two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// The 99th percentile (nearest rank), of at least a hundred values.
    pub p99: Option<f64>,
}

impl Summary {
    /// Sums up; nothing comes of no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let count = sorted.len();
        let median = if count % 2 == 1 {
            sorted[count / 2]
        } else {
            f64::midpoint(sorted[count / 2 - 1], sorted[count / 2])
        };
        let p99 = (count >= ENOUGH_FOR_P99).then(|| sorted[(count * 99).div_ceil(100) - 1]);
        Some(Self { count, median, least, most, p99 })
    }
}

/// Milliseconds with three decimals, mebibytes and ratios likewise: more would pretend.
pub fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_is_the_middle() {
        let median = |values: &[f64]| Summary::of(values).map(|summary| summary.median);
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_tail_needs_a_hundred_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&values).and_then(|summary| summary.p99), Some(198.0));
        assert_eq!(Summary::of(&values[..99]).and_then(|summary| summary.p99), None);
    }

    proptest! {
        #[test]
        fn a_summary_is_ordered(values in prop::collection::vec(-1e9..1e9f64, 1..300)) {
            let summary = Summary::of(&values).unwrap();
            prop_assert!(summary.least <= summary.median && summary.median <= summary.most);
            prop_assert!(summary.p99.is_none_or(|p99| summary.median <= p99 && p99 <= summary.most));
            prop_assert_eq!(summary.count, values.len());
            prop_assert!(values.contains(&summary.least) && values.contains(&summary.most));
        }
    }
}
