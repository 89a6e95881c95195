//! The configurations that tests take through directors: rules as `ipvsadm -R` takes them, one file of data.

use std::collections::HashMap;

use xipvs::plan::{Change, plan};
use xipvs::table::{Table, TableEntry};

const TEXT: &str = include_str!("configurations.txt");

/// A configuration with its title.
pub struct Configuration {
    pub title: &'static str,
    /// Its rules, in canonical spelling, each followed by a newline.
    pub rules: String,
}

/// All of them.
pub fn configurations() -> Vec<Configuration> {
    let configuration = |block: &'static str| {
        let (title, rules) = block.split_once('\n').unwrap_or((block, ""));
        Configuration { title, rules: rules.lines().map(|line| format!("{line}\n")).collect() }
    };
    TEXT.split("\n\n").map(|block| configuration(block.trim_end())).collect()
}

/// The rules that make a table, sorted: the order of services means nothing.
pub fn rules_of(table: &Table) -> Vec<String> {
    let mut rules: Vec<String> = plan(&Table::default(), table).iter().map(Change::to_string).collect();
    rules.sort();
    rules
}

/// A table's entries by their service's rule, so that their order does not count.
pub fn by_service(table: &Table) -> HashMap<String, &TableEntry> {
    table.entries.iter().map(|entry| (entry.service.key.to_string(), entry)).collect()
}

/// Lines, sorted.
pub fn sorted(lines: &str) -> Vec<String> {
    let mut lines: Vec<String> = lines.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The rules as `-S` writes them: without thresholds, and of the flags of sh and mh only those with a name.
pub fn as_saved(rules: &str) -> String {
    let line = |line: &str| {
        let hashes = line.contains(" -s sh ") || line.contains(" -s mh ");
        let mut words = Vec::new();
        let mut rest = line.split(' ');
        while let Some(word) = rest.next() {
            match word {
                "-x" | "-y" => drop(rest.next()),
                "flag-3" if hashes => words.push(""),
                _ if hashes => words.push(word.trim_end_matches(",flag-3")),
                _ => words.push(word),
            }
        }
        words.join(" ") + "\n"
    };
    rules.lines().map(line).collect()
}
