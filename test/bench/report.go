package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// samples of one thing, in the unit of its row.
type samples []float64

// quantile q, 0 to 1, of at least one sample.
func (s samples) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (s samples) median() float64 { return s.quantile(0.5) }

// floor is the name, among those of the daemons, of what their parts take alone.
const floorName = "floor"

// ours is the daemon whose limits and committed ratios count.
const ours = "crio"

// limit is what a row of ours must not exceed at the median; what is 0 is no limit.
type limit struct {
	Over  float64 `json:"over,omitempty"`  // above the floor
	Ratio float64 `json:"ratio,omitempty"` // to the floor
	Most  float64 `json:"most,omitempty"`  // by itself
}

// row is one measurement of all that were measured.
type row struct {
	Name  string             `json:"name"`
	Unit  string             `json:"unit"`
	Limit limit              `json:"limit"`
	By    map[string]samples `json:"-"`
	Told  map[string]told    `json:"results"`
	// Notes are instead of a measurement, such as "Unimplemented".
	Notes map[string]string `json:"notes,omitempty"`
}

// told is what the report says of samples.
type told struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	// Ratio to the floor's median, 0 without a floor.
	Ratio float64 `json:"ratio,omitempty"`
}

// report is the rows in the order in which they were first measured.
type report struct {
	Machine string `json:"machine"`
	// Names of the daemons.
	Names []string `json:"names"`
	Rows  []*row   `json:"rows"`
	// Part: not all groups were measured.
	Part bool `json:"part,omitempty"`
	// Profile is text, of the group of that name.
	Profile string `json:"profile,omitempty"`
}

func (r *report) row(name, unit string) *row {
	for _, old := range r.Rows {
		if old.Name == name {
			return old
		}
	}
	made := &row{Name: name, Unit: unit, Limit: limits(name), By: map[string]samples{}, Notes: map[string]string{}}
	r.Rows = append(r.Rows, made)
	return made
}

// add a sample. Rows come about with their first sample.
func (r *report) add(name, unit, who string, value float64) {
	row := r.row(name, unit)
	row.By[who] = append(row.By[who], value)
}

func (r *report) took(name, who string, d time.Duration) { r.add(name, "ms", who, ms(d)) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (r *report) note(name, unit, who, text string) { r.row(name, unit).Notes[who] = text }

// settle turns samples into what is told.
func (r *report) settle() {
	for _, row := range r.Rows {
		if row.Told != nil {
			continue
		}
		row.Told = map[string]told{}
		for who, s := range row.By {
			t := told{N: len(s), P50: s.median(), P95: s.quantile(0.95)}
			if f := row.By[floorName]; who != floorName && len(f) > 0 && f.median() > 0 {
				t.Ratio = t.P50 / f.median()
			}
			row.Told[who] = t
		}
	}
}

// verdict of a row with a limit: "" without one.
func (row *row) verdict() string {
	t, ok := row.Told[ours]
	if !ok {
		return ""
	}
	f := row.Told[floorName]
	var parts []string
	for _, check := range []struct {
		value, limit float64
		what         string
	}{{t.P50 - f.P50, row.Limit.Over, "over "}, {t.Ratio, row.Limit.Ratio, "ratio "}, {t.P50, row.Limit.Most, ""}} {
		if check.limit == 0 {
			continue
		}
		result := "met"
		if check.value > check.limit {
			result = "MISSED"
		}
		parts = append(parts, fmt.Sprintf("%s: %s%s, limit %s", result, check.what, number(check.value), number(check.limit)))
	}
	return strings.Join(parts, ", ")
}

// number with as many digits as mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// print writes a table in Markdown, which is aligned for people.
func (r *report) print(out io.Writer) {
	r.settle()
	if len(r.Rows) > 0 {
		fmt.Fprintf(out, "%s; median (p95) and ratio to the floor\n\n", r.Machine)
	}
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	line := func(cells ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, "\t| ")) }
	names := append([]string{floorName}, r.Names...)
	if len(r.Rows) > 0 {
		line(slices.Concat([]string{"measurement", "unit"}, names, []string{"limit of " + ours})...)
		line(slices.Repeat([]string{"---"}, len(names)+3)...)
	}
	for _, row := range r.Rows {
		cells := []string{row.Name, row.Unit}
		for _, who := range names {
			t, ok := row.Told[who]
			cell := row.Notes[who]
			if ok {
				cell = number(t.P50)
				if t.N > 1 {
					cell += " (" + number(t.P95) + ")"
				}
				if t.Ratio > 0 {
					cell += fmt.Sprintf(" %.2fx", t.Ratio)
				}
			}
			cells = append(cells, cell)
		}
		line(append(cells, row.verdict())...)
	}
	w.Flush()
	fmt.Fprint(out, r.Profile)
}

func (r *report) save(path string) error { return writeJSON(path, r) }

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func readReport(path string) (*report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &r, nil
}

// A ratio may be this much above the committed one, and one of times so short that a
// wake-up of a thread changes it may, as long as the time is no more than slack above.
const (
	tolerance = 1.15
	slack     = 0.1 // in the unit of the row, which is milliseconds where it is so short
)

// ratios of ours, which are what is committed.
func (r *report) ratios() map[string]float64 {
	r.settle()
	all := map[string]float64{}
	for _, row := range r.Rows {
		if t, ok := row.Told[ours]; ok && t.Ratio > 0 {
			all[row.Name] = math.Round(t.Ratio*1000) / 1000
		}
	}
	return all
}

// saveRatios replaces the committed ones; those of a part replace their own alone.
func (r *report) saveRatios(path string) error {
	all := map[string]float64{}
	if r.Part {
		var err error
		if all, err = readRatios(path); err != nil {
			return err
		}
	}
	maps.Copy(all, r.ratios())
	return writeJSON(path, all)
}

func readRatios(path string) (committed map[string]float64, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &committed); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return committed, nil
}

// compare fails where a ratio is worse than the committed one by more than the tolerance,
// and where one is missing, unless only a part was measured.
func (r *report) compare(path string) error {
	committed, err := readRatios(path)
	if err != nil {
		return err
	}
	var errs []error
	now := r.ratios()
	for _, row := range r.Rows {
		before, after := committed[row.Name], now[row.Name]
		if before > 0 && after > before*tolerance && (after-before)*row.Told[floorName].P50 > slack {
			errs = append(errs, fmt.Errorf("%s: %.2f times the floor, committed are %.2f", row.Name, after, before))
		}
	}
	for name := range committed {
		if _, ok := now[name]; !ok && !r.Part {
			errs = append(errs, fmt.Errorf("%s: was not measured", name))
		}
	}
	return errors.Join(errs...)
}
