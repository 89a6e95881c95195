//! What things may cost at most, and what they should: ratios of the same run and counts of instructions, never times.
//!
//! One line each: what is compared, the budget that `cargo xtask bench --check` holds (`-` for none), the goal that the table
//! speaks of (`-` for none), the size, and the row's name. `#` begins a comment. What the verifier may cost has budgets in
//! the tests of the loaded program.

use anyhow::{Context, Result, bail, ensure};

use super::figure::{Figure, figures};
use super::{Measured, Unit};

/// The limits of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// What is compared.
    pub measure: Measure,
    /// What must hold.
    pub budget: Option<Bound>,
    /// What is wanted.
    pub goal: Option<Bound>,
    /// The row's size.
    pub size: u32,
    /// The row.
    pub name: String,
}

/// What a budget is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Hash-map lookups of the same run with one flow.
    Hot,
    /// Hash-map lookups of the same run with as many flows.
    SameSize,
    /// Instructions.
    Instructions,
    /// How often one figure has another in it, which is what the row says.
    Times,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// `<=`
    AtMost(f64),
    /// `>=`
    AtLeast(f64),
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

/// Returns the budgets that do not hold, each with a sentence that says by how much.
///
/// # Errors
///
/// When a budget is for something that was not measured: it would hold for ever.
pub fn exceeded(budgets: &[Budget], measured: &Measured) -> Result<Vec<(Budget, String)>> {
    let mut all = Vec::new();
    for budget in budgets {
        let Some(bound) = budget.budget else { continue };
        let value = budget.value(measured).with_context(|| format!("nothing measured for {budget:?}"))?;
        if !bound.holds(value) {
            let Budget { measure, size, name, .. } = budget;
            let sentence = format!("{name}, {size}: {value:.2} {}, {bound}", measure.name());
            all.push((budget.clone(), sentence));
        }
    }
    Ok(all)
}

impl Budget {
    fn parse(line: &str) -> Result<Self> {
        let mut rest = line;
        let measure = match word(&mut rest) {
            "hot" => Measure::Hot,
            "same-size" => Measure::SameSize,
            "instructions" => Measure::Instructions,
            "times" => Measure::Times,
            other => bail!("nothing is compared by {other}"),
        };
        let budget = Bound::parse(word(&mut rest))?;
        let goal = Bound::parse(word(&mut rest))?;
        ensure!(budget.is_some() || goal.is_some(), "neither budget nor goal");
        let size = word(&mut rest).parse().context("no size")?;
        let name = rest.trim().to_owned();
        ensure!(!name.is_empty(), "no name");
        Ok(Self { measure, budget, goal, size, name })
    }

    /// Whether it is about a row of the table.
    pub fn is_of(&self, figure: &Figure<'_>) -> bool {
        let unit = match self.measure {
            Measure::Hot | Measure::SameSize => Unit::Nanoseconds,
            Measure::Instructions => Unit::Instructions,
            Measure::Times => Unit::Times,
        };
        figure.name == self.name && figure.size == self.size && figure.unit == unit
    }

    /// What was measured, if it was.
    fn value(&self, measured: &Measured) -> Option<f64> {
        let found = figures(measured).into_iter().find(|figure| self.is_of(figure))?;
        match self.measure {
            Measure::Hot => found.hot,
            Measure::SameSize => found.same_size,
            Measure::Instructions | Measure::Times => Some(found.median),
        }
    }

    /// What the table says of the goal: that it is met, or by how much it is missed.
    pub fn verdict(&self, measured: &Measured) -> Option<String> {
        let (goal, value) = (self.goal?, self.value(measured)?);
        let name = self.measure.name();
        let off = match goal {
            _ if goal.holds(value) => return Some(format!("{goal} {name}: met")),
            Bound::AtMost(most) => (value - most) / most,
            Bound::AtLeast(least) => (least - value) / least,
        };
        Some(format!("{goal} {name}: missed by {:.0} %", (off * 100.0).ceil()))
    }
}

impl Measure {
    /// How it is called.
    const fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot lookups",
            Self::SameSize => "lookups",
            Self::Instructions => "instructions",
            Self::Times => "times",
        }
    }
}

impl Bound {
    fn parse(word: &str) -> Result<Option<Self>> {
        if word == "-" {
            return Ok(None);
        }
        let number = |text: &str| -> Result<f64> {
            let number: f64 = text.parse().with_context(|| format!("{text} is no number"))?;
            ensure!(number.is_finite() && number > 0.0, "nothing is compared with {number}");
            Ok(number)
        };
        match (word.strip_prefix("<="), word.strip_prefix(">=")) {
            (Some(most), _) => Ok(Some(Self::AtMost(number(most)?))),
            (_, Some(least)) => Ok(Some(Self::AtLeast(number(least)?))),
            _ => bail!("{word} is no limit"),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(formatter, "at most {most}"),
            Self::AtLeast(least) => write!(formatter, "at least {least}"),
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
    use super::{Bound, Budget, Measure, exceeded, parse};
    use crate::bench::figure::HASH;
    use crate::bench::{Measured, Unit};

    fn measured() -> Measured {
        let mut measured = Measured::default();
        measured.note(HASH, 1, Unit::Nanoseconds, 20.0);
        measured.note(HASH, 1000, Unit::Nanoseconds, 50.0);
        measured.note("known, NAT", 1000, Unit::Nanoseconds, 100.0);
        measured.note("known, NAT", 1000, Unit::Instructions, 1500.0);
        measured.note("two CPUs", 2, Unit::Times, 1.8);
        measured
    }

    #[test]
    fn the_committed_budgets_can_be_read() {
        parse(include_str!("../../budgets.txt")).unwrap();
    }

    #[test]
    fn a_line_is_a_measure_budget_goal_size_and_name() {
        let budgets =
            parse("# why\n\nhot  <=2.5 - 1000 known,  NAT # so\ntimes - >=1.9 2 two CPUs\n").unwrap();
        let known = Budget {
            measure: Measure::Hot,
            budget: Some(Bound::AtMost(2.5)),
            goal: None,
            size: 1000,
            name: "known,  NAT".into(),
        };
        let other = Budget {
            measure: Measure::Times,
            budget: None,
            goal: Some(Bound::AtLeast(1.9)),
            size: 2,
            name: "two CPUs".into(),
        };
        assert_eq!(budgets, [known, other]);
    }

    #[test]
    fn what_is_not_a_budget_is_refused() {
        let rest =
            ["", "hot", "hot <=1", "hot 1 - 1 name", "hot - - 1 name", "hot <=1 - 1", "hot <=1 - x name"];
        let numbers = ["cold <=1 - 1 name", "hot <=-1 - 1 name", "hot <=x - 1 name", "hot =1 - 1 name"];
        for line in rest.iter().chain(&numbers) {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn only_what_does_not_hold_is_exceeded() {
        let check = |line: &str| -> Vec<String> {
            let exceeded = exceeded(&parse(line).unwrap(), &measured()).unwrap();
            exceeded.into_iter().map(|(_, sentence)| sentence).collect()
        };
        assert!(check("hot <=5 - 1000 known, NAT").is_empty());
        assert!(check("same-size <=2 <=1 1000 known, NAT").is_empty());
        assert!(check("instructions - <=1 1000 known, NAT").is_empty());
        assert_eq!(
            check(
                "hot <=4.9 - 1000 known, NAT\nhot <=6 - 1000 known, NAT\nsame-size <=1.9 - 1000 known, NAT
                 instructions <=1499 - 1000 known, NAT\ntimes >=1.9 - 2 two CPUs"
            ),
            [
                "known, NAT, 1000: 5.00 hot lookups, at most 4.9",
                "known, NAT, 1000: 2.00 lookups, at most 1.9",
                "known, NAT, 1000: 1500.00 instructions, at most 1499",
                "two CPUs, 2: 1.80 times, at least 1.9",
            ]
        );
    }

    #[test]
    fn a_budget_for_what_was_not_measured_is_an_error() {
        for line in ["hot <=9 - 1 known, NAT", "same-size <=9 - 1000 unknown", "times <=9 - 1000 known, NAT"]
        {
            assert!(exceeded(&parse(line).unwrap(), &measured()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_table_says_by_how_much_a_goal_is_missed() {
        let verdict = |line: &str| parse(line).unwrap()[0].verdict(&measured());
        assert_eq!(
            verdict("instructions - <=1500 1000 known, NAT").unwrap(),
            "at most 1500 instructions: met"
        );
        let missed = verdict("instructions - <=1200 1000 known, NAT").unwrap();
        assert_eq!(missed, "at most 1200 instructions: missed by 25 %");
        assert_eq!(verdict("times - >=2 2 two CPUs").unwrap(), "at least 2 times: missed by 10 %");
        assert_eq!(verdict("hot <=5 - 1000 known, NAT"), None);
        assert_eq!(verdict("hot - <=5 7 known, NAT"), None);
    }
}
