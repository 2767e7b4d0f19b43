package image

import (
	"errors"
	"testing"
)

func TestParsePlatform(t *testing.T) {
	for text, want := range map[string]Platform{
		"": {}, "linux/amd64": {"linux", "amd64", ""}, "linux/arm/v7": {"linux", "arm", "v7"}, "windows/amd64": {"windows", "amd64", ""},
	} {
		if got, err := ParsePlatform(text); err != nil || got != want || text != "" && got.String() != text {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"linux", "/", "linux/", "/amd64", "a/b/c/d", "linux/amd64/", "Linux/amd64", "linux/amd64 ", "linux/amd64\n", "../x"} {
		if got, err := ParsePlatform(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestPlatformAccepts(t *testing.T) {
	for _, c := range []struct {
		asked, is Platform
		want      bool
	}{
		{Platform{}, Platform{"linux", "s390x", ""}, true},
		{Platform{"linux", "arm64", ""}, Platform{"linux", "arm64", "v8"}, true},
		{Platform{"linux", "arm64", "v8"}, Platform{"linux", "arm64", ""}, true},
		{Platform{"linux", "arm", "v6"}, Platform{"linux", "arm", "v7"}, false},
		{Platform{"linux", "arm", ""}, Platform{"linux", "arm64", ""}, false},
		{Platform{"windows", "amd64", ""}, Platform{"linux", "amd64", ""}, false},
	} {
		if got := c.asked.Accepts(c.is); got != c.want {
			t.Errorf("%s accepts %s: %t", c.asked, c.is, got)
		}
	}
}
