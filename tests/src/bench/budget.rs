//! What a packet may cost at most: ratios to lookups of the same run, never times.
//!
//! One budget a line: which lookups (`hot` or `same-size`), at most how many, the number of flows, and the row's
//! name. `#` begins a comment. What the verifier may cost has budgets in the tests of the loaded program.

use anyhow::{Context, Result, bail, ensure};

use super::Measured;
use super::figure::figures;

/// One limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// What it is counted in.
    pub lookups: Lookups,
    /// At most this many.
    pub most: f64,
    /// The number of flows.
    pub flows: u32,
    /// The row.
    pub name: String,
}

/// The hash-map lookups of the same run that a budget counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookups {
    /// With one flow.
    Hot,
    /// With as many flows.
    SameSize,
}

/// Reads budgets.
///
/// # Errors
///
/// When a line is not a budget, or there is none.
pub fn parse(text: &str) -> Result<Vec<Budget>> {
    let mut budgets = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            budgets.push(Budget::parse(line).with_context(|| format!("line {number}: {line}"))?);
        }
    }
    ensure!(!budgets.is_empty(), "there are no budgets");
    Ok(budgets)
}

/// Returns the budgets that are exceeded, each with a sentence that says by how much.
///
/// # Errors
///
/// When a budget is for something that was not measured: it would hold for ever.
pub fn exceeded(budgets: &[Budget], measured: &Measured) -> Result<Vec<(Budget, String)>> {
    let mut all = Vec::new();
    for budget in budgets {
        let spent = budget.spent(measured).with_context(|| format!("nothing measured for {budget:?}"))?;
        if spent > budget.most {
            let Budget { lookups, most, flows, name } = budget;
            let lookups = match lookups {
                Lookups::Hot => "hot lookups",
                Lookups::SameSize => "lookups at that size",
            };
            let sentence = format!("{name}, {flows} flows: {spent:.2} {lookups}, at most {most}");
            all.push((budget.clone(), sentence));
        }
    }
    Ok(all)
}

impl Budget {
    fn parse(line: &str) -> Result<Self> {
        let mut rest = line;
        let lookups = match word(&mut rest) {
            "hot" => Lookups::Hot,
            "same-size" => Lookups::SameSize,
            other => bail!("unknown lookups {other}"),
        };
        let most: f64 = word(&mut rest).parse().context("no number that it may be at most")?;
        ensure!(most.is_finite() && most > 0.0, "nothing is at most {most}");
        let flows = word(&mut rest).parse().context("no number of flows")?;
        let name = rest.trim().to_owned();
        ensure!(!name.is_empty(), "no name");
        Ok(Self { lookups, most, flows, name })
    }

    fn spent(&self, measured: &Measured) -> Option<f64> {
        let figures = figures(measured);
        let found = figures.iter().find(|figure| figure.name == self.name && figure.flows == self.flows)?;
        match self.lookups {
            Lookups::Hot => found.hot,
            Lookups::SameSize => found.same_size,
        }
    }
}

/// Takes the first word off.
fn word<'a>(rest: &mut &'a str) -> &'a str {
    let line = rest.trim_start();
    let (word, after) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    *rest = after;
    word
}

#[cfg(test)]
mod tests {
    use super::{Budget, Lookups, exceeded, parse};
    use crate::bench::figure::HASH;
    use crate::bench::{Measured, Row, Unit};

    fn measured() -> Measured {
        let row = |name: &str, flows, nanoseconds| Row {
            name: name.into(),
            flows,
            unit: Unit::Nanoseconds,
            rounds: vec![nanoseconds],
        };
        let rows = vec![row(HASH, 1, 20.0), row(HASH, 1000, 50.0), row("known, NAT", 1000, 100.0)];
        Measured { rows, ..Measured::default() }
    }

    #[test]
    fn the_committed_budgets_can_be_read() {
        parse(include_str!("../../budgets.txt")).unwrap();
    }

    #[test]
    fn a_line_is_lookups_a_number_flows_and_a_name() {
        let budgets = parse("# why\n\nhot  2.5 1000 known,  NAT # so\nsame-size 3 1 not ours\n").unwrap();
        let known = Budget { lookups: Lookups::Hot, most: 2.5, flows: 1000, name: "known,  NAT".into() };
        let other = Budget { lookups: Lookups::SameSize, most: 3.0, flows: 1, name: "not ours".into() };
        assert_eq!(budgets, [known, other]);
    }

    #[test]
    fn what_is_not_a_budget_is_refused() {
        let lines =
            ["", "hot", "hot 1", "hot x 1 name", "hot 1 1", "cold 1 1 name", "hot -1 1 name", "hot 1 x name"];
        for line in lines {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn only_what_is_more_than_allowed_is_exceeded() {
        let check = |line: &str| -> Vec<String> {
            let exceeded = exceeded(&parse(line).unwrap(), &measured()).unwrap();
            exceeded.into_iter().map(|(_, sentence)| sentence).collect()
        };
        assert!(check("hot 5 1000 known, NAT").is_empty());
        assert!(check("same-size 2 1000 known, NAT").is_empty());
        assert_eq!(
            check("hot 4.9 1000 known, NAT\nhot 6 1000 known, NAT\nsame-size 1.9 1000 known, NAT"),
            [
                "known, NAT, 1000 flows: 5.00 hot lookups, at most 4.9",
                "known, NAT, 1000 flows: 2.00 lookups at that size, at most 1.9",
            ]
        );
    }

    #[test]
    fn a_budget_for_what_was_not_measured_is_an_error() {
        for line in ["hot 9 1 known, NAT", "same-size 9 1000 unknown"] {
            assert!(exceeded(&parse(line).unwrap(), &measured()).is_err(), "{line}");
        }
    }
}
