//! Charts as SVG: drawn here, styled by the style sheet, with a title and a text alternative.

use std::collections::BTreeMap;

use crate::present::format_time;

/// A histogram over time.
pub(crate) struct Histogram<'a> {
    pub(crate) counts: &'a BTreeMap<u64, u64>,
    /// First bucket and the one after the last, Unix µs.
    pub(crate) range_us: (u64, u64),
    pub(crate) bucket_us: u64,
    pub(crate) title: &'a str,
}

impl Histogram<'_> {
    /// Draws the bars, each with its time and count as a tooltip.
    pub(crate) fn to_svg(&self) -> String {
        let (from, to) = self.range_us;
        let buckets = (to.saturating_sub(from) / self.bucket_us.max(1)).clamp(1, BUCKETS_MAX);
        let highest = self.counts.values().copied().max().unwrap_or(0).max(1);
        let pattern = if self.bucket_us >= 86_400_000_000 {
            "%d %b"
        } else if to - from > 86_400_000_000 {
            "%d %b %H:%M"
        } else {
            "%H:%M:%S"
        };
        let mut svg = format!(
            "<svg class=\"histogram\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\"><title>{}</title>",
            escape(self.title)
        );
        for i in 0..buckets {
            let start = from + i * self.bucket_us;
            let count = self.counts.get(&start).copied().unwrap_or(0);
            let height = if count == 0 {
                0
            } else {
                (count * PLOT_HEIGHT / highest).max(2)
            };
            let (x, next) = (i * WIDTH / buckets, (i + 1) * WIDTH / buckets);
            let gap = u64::from(next - x > 3);
            svg.push_str(&format!(
                "<g><rect class=\"hover\" x=\"{x}\" y=\"0\" width=\"{}\" height=\"{HEIGHT}\"/><rect class=\"bar\" x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{height}\"/><title>{} · {count}</title></g>",
                next - x,
                HEIGHT - height,
                next - x - gap,
                format_time(start, pattern),
            ));
        }
        svg.push_str("</svg>");
        svg
    }

    /// The times under the first, middle and last bar.
    pub(crate) fn axis(&self) -> [String; 3] {
        let (from, to) = self.range_us;
        let pattern = if to.saturating_sub(from) > 86_400_000_000 {
            "%Y-%m-%d %H:%M"
        } else {
            "%H:%M:%S"
        };
        [from, from + (to - from) / 2, to].map(|us| format_time(us, pattern))
    }
}

/// A bucket width that gives about 60 bars over `range_us`, in round units.
pub(crate) fn bucket_for(range_us: u64) -> u64 {
    const SECOND: u64 = 1_000_000;
    let steps = [
        1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200,
        86_400, 604_800,
    ];
    let wanted = range_us / 60;
    let step = steps
        .into_iter()
        .map(|seconds| seconds * SECOND)
        .find(|&step| step >= wanted);
    step.unwrap_or(2_592_000 * SECOND)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

const WIDTH: u64 = 960;
const HEIGHT: u64 = 96;
const PLOT_HEIGHT: u64 = 92;
const BUCKETS_MAX: u64 = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_a_bar_for_each_bucket_and_escapes_its_title() {
        let counts = BTreeMap::from([(0, 1), (2_000_000, 7)]);
        let histogram = Histogram {
            counts: &counts,
            range_us: (0, 4_000_000),
            bucket_us: 1_000_000,
            title: "<b>",
        };
        let svg = histogram.to_svg();
        assert_eq!(svg.matches("class=\"bar\"").count(), 4);
        assert!(svg.contains("&lt;b&gt;") && svg.contains("00:00:02 · 7"));
    }

    #[test]
    fn buckets_are_round() {
        assert_eq!(bucket_for(3_600_000_000), 60_000_000);
        assert_eq!(bucket_for(86_400_000_000), 1_800_000_000);
    }
}
