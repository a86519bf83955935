//! The samples of a `/metrics` in the classic text format.

/// One line.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'t> {
    name: &'t str,
    labels: Vec<(&'t str, String)>,
    pub(super) value: f64,
}

/// All samples of one answer.
#[derive(Debug)]
pub(super) struct Scrape<'t>(Vec<Sample<'t>>);

impl<'t> Scrape<'t> {
    /// Lines that are no samples are skipped.
    pub(super) fn parse(text: &'t str) -> Self {
        Self(text.lines().filter_map(Sample::parse).collect())
    }

    /// Those of one name.
    pub(super) fn of(&self, name: &str) -> impl Iterator<Item = &Sample<'t>> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The sum of those of this name.
    pub(super) fn sum(&self, name: &str) -> f64 {
        self.of(name).map(|sample| sample.value).sum()
    }

    /// The same of those with this label.
    pub(super) fn sum_where(&self, name: &str, label: &str, value: &str) -> f64 {
        self.of(name).filter(|sample| sample.label(label) == value).map(|sample| sample.value).sum()
    }
}

impl<'t> Sample<'t> {
    fn parse(line: &'t str) -> Option<Self> {
        let end = line.find(['{', ' ']).filter(|_| !line.starts_with('#'))?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, value) = rest.split_once("=\"")?;
                let (value, behind) = unquote(value)?;
                labels.push((label, value));
                rest = behind.strip_prefix(',').unwrap_or(behind);
            }
            rest = rest.strip_prefix('}')?;
        }
        let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    /// The value of a label; empty if there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| *label == name).map_or("", |(_, value)| value)
    }
}

/// The text up to the quotation mark, and what is behind it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, text.get(at + 1..)?)),
            (_, '\\') => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_their_labels() {
        let text = "# TYPE a gauge\na 1\na{x=\"1,\\\"}\\n\\\\\",y=\"z\"} 2.5\nab{x=\"1\"} 4\na{} 8 1700000000\nbad\na{x=\"1} 1\n\
                    a{x=\"y\"}\n";
        let scrape = Scrape::parse(text);
        let values: Vec<_> = scrape.of("a").map(|sample| sample.value).collect();
        assert_eq!(values, [1.0, 2.5, 8.0]);
        let labelled = scrape.of("a").nth(1).unwrap();
        assert_eq!((labelled.label("x"), labelled.label("y"), labelled.label("z")), ("1,\"}\n\\", "z", ""));
        assert_eq!((scrape.sum("a"), scrape.sum_where("a", "y", "z"), scrape.sum("c")), (11.5, 2.5, 0.0));
    }
}
