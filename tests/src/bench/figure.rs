//! Medians and ratios of what was measured, and the table of them.

use std::fmt::Write;

use super::budget::Budget;
use super::{Measured, Row, Unit};

/// The row of the empty program, which every other row with as many flows is above.
pub const BARE: &str = "bare XDP_PASS, feeding included";
/// The row of the hash-map lookup; with one flow it is what the others are compared with.
pub const HASH: &str = "one hash map lookup";

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure<'a> {
    /// What was measured.
    pub name: &'a str,
    /// [`Row::size`].
    pub size: u32,
    /// The median of the rounds.
    pub median: f64,
    /// What it counts.
    pub unit: Unit,
    /// How many hot hash-map lookups of the same run that is.
    pub hot: Option<f64>,
    /// How many hash-map lookups at the same number of flows that is.
    pub same_size: Option<f64>,
}

/// The middle one, or the mean of the two in the middle; none of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// How often `one` has `other` in it; none where that is nothing to compare with.
fn ratio(one: f64, other: Option<f64>) -> Option<f64> {
    other.filter(|other| *other > 0.0).map(|other| one / other)
}

/// Works out the table's rows.
pub fn figures(measured: &Measured) -> Vec<Figure<'_>> {
    let hash = |size: u32| {
        let row = measured.rows.iter().find(|row| row.name == HASH && row.size == size);
        row.and_then(|row| median(&row.rounds))
    };
    let mut figures = Vec::new();
    for Row { name, size, unit, rounds } in &measured.rows {
        let Some(median) = median(rounds) else { continue };
        let compares = *unit == Unit::Nanoseconds && name != BARE;
        let to = |flows: u32| ratio(median, hash(flows)).filter(|_| compares);
        let (hot, same_size) = (to(1), to(*size));
        figures.push(Figure { name, size: *size, median, unit: *unit, hot, same_size });
    }
    figures
}

/// Writes the table as Markdown, which reads well in a terminal too.
pub fn table(measured: &Measured, goals: &[Budget]) -> String {
    let figures = figures(measured);
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
    let show = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let mut text =
        format!("| {:width$} |    size |    figure | unit         | hot lookups | lookups | goal |\n", "row");
    text +=
        &format!("|-{:-<width$}-|--------:|----------:|--------------|------------:|--------:|------|\n", "");
    for figure in &figures {
        let Figure { name, size, median, unit, .. } = figure;
        let goal = goals.iter().filter(|goal| goal.is_of(figure)).find_map(|goal| goal.verdict(measured));
        let (unit, hot, same) = (unit.name(), show(figure.hot), show(figure.same_size));
        let goal = goal.unwrap_or_default();
        let decimals = if *median < 10.0 { 2 } else { usize::from(*median < 1000.0) };
        let _ = writeln!(
            text,
            "| {name:width$} | {size:7} | {median:9.decimals$} | {unit:12} | {hot:>11} | {same:>7} | {goal} |"
        );
    }
    if !measured.programs.is_empty() {
        text +=
            "\n| program         | instructions verified |\n|-----------------|----------------------:|\n";
    }
    for program in &measured.programs {
        let _ = writeln!(text, "| {:15} | {:21} |", program.name, program.instructions);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{BARE, HASH, figures, median, table};
    use crate::bench::budget::parse;
    use crate::bench::{Measured, Program, Row, Unit};

    fn row(name: &str, flows: u32, rounds: &[f64]) -> Row {
        Row { name: name.into(), size: flows, unit: Unit::Nanoseconds, rounds: rounds.into() }
    }

    fn measured() -> Measured {
        Measured {
            rows: vec![
                row(BARE, 1, &[90.0, 100.0, 110.0]),
                row(HASH, 1, &[19.0, 21.0, 400.0]),
                row(HASH, 1000, &[42.0]),
                row("known", 1000, &[105.0, 1.0, 1000.0]),
                row("new", 7, &[42.0]),
            ],
            programs: vec![Program { name: "xipvs".into(), instructions: 1234 }],
        }
    }

    #[test]
    fn a_median_is_not_moved_by_one_disturbed_round() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9000.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_to_lookups_of_the_same_run() {
        let measured = measured();
        let figures = figures(&measured);
        assert_eq!((figures[0].median, figures[0].hot), (100.0, None));
        assert_eq!((figures[3].name, figures[3].median), ("known", 105.0));
        assert_eq!((figures[3].hot, figures[3].same_size), (Some(5.0), Some(2.5)));
        // Nothing of the same size was measured.
        assert_eq!((figures[4].hot, figures[4].same_size), (Some(2.0), None));
    }

    #[test]
    fn nothing_is_divided_by_a_lookup_that_cost_nothing() {
        let measured =
            Measured { rows: vec![row(HASH, 1, &[0.0]), row("known", 1, &[5.0])], ..Measured::default() };
        assert_eq!(figures(&measured)[1].hot, None);
    }

    #[test]
    fn the_table_has_every_row_and_program() {
        let goals = parse("hot - <=4 1000 known").unwrap();
        let text = table(&measured(), &goals);
        assert!(text.contains(&format!(
            "| known{} |    1000 |     105.0 | ns           |        5.00 |    2.50 | at most 4 hot lookups: missed by 25 % |",
            " ".repeat(BARE.len() - 5)
        )));
        assert!(text.contains("| xipvs           |                  1234 |"));
    }
}
