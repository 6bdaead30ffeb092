//! What is printed: a figure, and the goal that it met or missed.

use std::time::Duration;

/// A duration that shall be below `goal`.
pub fn within(what: &str, took: Duration, goal: Duration) {
    println!("{what}: {took:.2?} (goal: under {goal:?}, {})", verdict(took < goal));
}

/// A number that shall be below `goal`.
pub fn below(what: &str, number: f64, unit: &str, goal: f64) {
    println!("{what}: {number:.1} {unit} (goal: under {goal} {unit}, {})", verdict(number < goal));
}

/// A number that shall be `goal` at least.
pub fn at_least(what: &str, number: f64, unit: &str, goal: f64) {
    println!("{what}: {number:.0} {unit} (goal: {goal} {unit} or more, {})", verdict(number >= goal));
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
