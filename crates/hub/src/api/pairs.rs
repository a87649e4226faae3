//! Queries of lists with more than pages: repeated parameters, times, orders.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use jiff::Timestamp;
use sortie_api::ApiError;

use super::frame::Failure;

/// The parameters of a query, in their order; those that are not asked for are passed over.
pub(super) struct Pairs(Vec<(String, String)>);

/// Bounds of times, both included, in the unit that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Within {
    pub(super) from: Option<i64>,
    pub(super) to: Option<i64>,
}

/// What times are counted in.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Second,
    Microsecond,
}

impl<S: Sync> FromRequestParts<S> for Pairs {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(_) => Err(ApiError::invalid_request("The query cannot be read; percent-encode its values.").into()),
        }
    }
}

impl Pairs {
    /// The value of a parameter that is sent once.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.named(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::invalid_request(format!("{name}: was sent more than once"))),
            (value, None) => Ok(value),
        }
    }

    /// The values of a parameter that is repeated, as `name[]=`, at most so many.
    pub(super) fn many(&self, name: &str, most: usize) -> Result<Vec<&str>, ApiError> {
        let values: Vec<&str> = self.named(&format!("{name}[]")).chain(self.named(name)).collect();
        if values.len() > most {
            return Err(ApiError::invalid_request(format!("{name}: at most {most} values")));
        }
        Ok(values)
    }

    /// A parameter that is read into its type.
    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, ApiError> {
        let text = self.one(name)?;
        text.map(|text| text.parse().map_err(|_| ApiError::invalid_request(format!("{name}: must be {what}"))))
            .transpose()
    }

    /// How many objects a page is to have.
    pub(super) fn limit(&self, usual: u32, most: u32) -> Result<u32, ApiError> {
        let refused = || ApiError::invalid_request(format!("limit: must be a number between 1 and {most}"));
        match self.one("limit")? {
            None => Ok(usual),
            Some(text) => text.parse().ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(refused),
        }
    }

    /// Whether the oldest comes first.
    pub(super) fn ascending(&self, usual: bool) -> Result<bool, ApiError> {
        match self.one("order")? {
            None => Ok(usual),
            Some("asc") => Ok(true),
            Some("desc") => Ok(false),
            Some(_) => Err(ApiError::invalid_request("order: must be `asc` or `desc`")),
        }
    }

    /// The bounds `name[gt]`, `name[gte]`, `name[lt]` and `name[lte]`.
    pub(super) fn within(&self, name: &str, unit: Unit) -> Result<Within, ApiError> {
        let bound = |which: &str| -> Result<Option<Timestamp>, ApiError> {
            let name = format!("{name}[{which}]");
            // A `+` before an offset that was not encoded arrives as a blank.
            let text = self.one(&name)?.map(|text| text.replace(' ', "+"));
            let refused = |_| ApiError::invalid_request(format!("{name}: must be an RFC 3339 timestamp"));
            text.map(|text| text.parse().map_err(refused)).transpose()
        };
        let from =
            [bound("gt")?.map(|at| unit.last_until(at).saturating_add(1)), bound("gte")?.map(|at| unit.first_from(at))];
        let to =
            [bound("lt")?.map(|at| unit.first_from(at).saturating_sub(1)), bound("lte")?.map(|at| unit.last_until(at))];
        Ok(Within { from: from.into_iter().flatten().max(), to: to.into_iter().flatten().min() })
    }

    fn named<'p>(&'p self, name: &str) -> impl Iterator<Item = &'p str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Within {
    /// Refuses a cursor that lies outside, as no page can go on from there.
    pub(super) fn check_place(&self, at: i64) -> Result<(), ApiError> {
        if self.from.is_some_and(|from| at < from) || self.to.is_some_and(|to| at > to) {
            let sentence = "page: the cursor lies outside of the times that `created_at` asks for; begin without it";
            return Err(ApiError::invalid_request(sentence));
        }
        Ok(())
    }
}

impl Unit {
    /// The last whole unit that is not later.
    fn last_until(self, at: Timestamp) -> i64 {
        let nanoseconds = at.as_nanosecond();
        i64::try_from(nanoseconds.div_euclid(self.nanoseconds())).unwrap_or(i64::MAX)
    }

    /// The first whole unit that is not earlier.
    fn first_from(self, at: Timestamp) -> i64 {
        let nanoseconds = at.as_nanosecond().saturating_add(self.nanoseconds()).saturating_sub(1);
        i64::try_from(nanoseconds.div_euclid(self.nanoseconds())).unwrap_or(i64::MAX)
    }

    fn nanoseconds(self) -> i128 {
        match self {
            Self::Second => 1_000_000_000,
            Self::Microsecond => 1_000,
        }
    }
}

/// The cursor of a list with this name, which says its order, too.
pub(super) fn place<const N: usize>(list: &str, pairs: &Pairs) -> Result<Option<[i64; N]>, ApiError> {
    let refused = || {
        let sentence =
            "page: not a cursor of this list in this order; send the next_page of the previous page unchanged";
        ApiError::invalid_request(sentence)
    };
    pairs.one("page")?.map(|text| sortie_api::read_place(list, text).ok_or_else(refused)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &str) -> Pairs {
        let uri = format!("/?{query}").parse().expect("uri");
        let Query(pairs) = Query::try_from_uri(&uri).expect("query");
        Pairs(pairs)
    }

    #[test]
    fn parameters_are_sent_once_or_repeated_in_brackets() {
        let sent = pairs("types%5B%5D=a&types[]=b&limit=5&order=asc&page=x&page=y");
        assert_eq!(sent.many("types", 5).expect("two"), ["a", "b"]);
        assert!(sent.many("types", 1).is_err());
        assert_eq!(sent.limit(20, 100).expect("limit"), 5);
        assert!(sent.ascending(false).expect("order"));
        assert!(sent.one("page").is_err());
        for bad in ["limit=0", "limit=101", "limit=-1", "limit=x", "limit="] {
            assert!(pairs(bad).limit(20, 100).is_err(), "{bad}");
        }
        assert!(pairs("order=up").ascending(true).is_err());
        assert_eq!(pairs("").limit(20, 100).expect("usual"), 20);
    }

    #[test]
    fn times_become_bounds_in_whole_units() {
        let within = |query: &str, unit| pairs(query).within("created_at", unit).map(|within| (within.from, within.to));
        for (query, seconds) in [
            ("created_at[gt]=1970-01-01T00:00:05Z", (Some(6), None)),
            ("created_at[gte]=1970-01-01T00:00:05Z", (Some(5), None)),
            ("created_at[gt]=1970-01-01T00:00:05.5Z", (Some(6), None)),
            ("created_at[gte]=1970-01-01T00:00:05.5Z", (Some(6), None)),
            ("created_at[lt]=1970-01-01T00:00:05Z", (None, Some(4))),
            ("created_at[lte]=1970-01-01T00:00:05Z", (None, Some(5))),
            ("created_at[lt]=1970-01-01T00:00:05.5Z", (None, Some(5))),
            ("created_at[lte]=1970-01-01T00:00:05.5Z", (None, Some(5))),
            ("created_at%5Bgte%5D=1970-01-01T01:00:05+01:00", (Some(5), None)),
        ] {
            assert_eq!(within(query, Unit::Second).expect(query), seconds, "{query}");
        }
        let both = "created_at[gt]=1970-01-01T00:00:00.000001Z&created_at[lt]=1970-01-01T00:00:00.000009Z";
        assert_eq!(within(both, Unit::Microsecond).expect("both"), (Some(2), Some(8)));
        assert!(within("created_at[gt]=yesterday", Unit::Second).is_err());
        let within = Within { from: Some(5), to: Some(9) };
        assert!(within.check_place(5).is_ok() && within.check_place(9).is_ok());
        assert!(within.check_place(4).is_err() && within.check_place(10).is_err());
    }
}
