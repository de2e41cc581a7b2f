"""One page that says where accuracy went, and what to do about it: report, compare_reports."""
