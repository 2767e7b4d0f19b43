package untrusted

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxID is the largest user and group ID. The one above it, (uid_t)-1, means "no
// change" to chown(2) and setresuid(2).
const maxID = math.MaxUint32 - 1

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// UserSpec is what CRI and the image ask for (LinuxContainerSecurityContext).
type UserSpec struct {
	// UID is run_as_user, Username run_as_username; at most one of them may be set.
	UID      *int64
	Username string
	// GID is run_as_group; it needs one of the above.
	GID *int64
	// ImageUser is "user[:group]" of the image's configuration, for when CRI names nobody.
	ImageUser string
	// SupplementalGroups are added to, and with Strict replace, the groups that the
	// image's /etc/group gives to the user (supplemental_groups_policy).
	SupplementalGroups []int64
	Strict             bool
}

// User is who a process runs as.
type User struct {
	UID, GID uint32
	// Groups are sorted, have no duplicates and always contain GID.
	Groups []uint32
	// Home is an absolute path, "/" where the image gives no usable one.
	Home string
}

// LookupUser resolves spec with the /etc/passwd and /etc/group of the image that is
// mounted at root. Neither needs to exist as long as only numbers are asked for. An
// error means that the request cannot succeed with this image.
func LookupUser(root string, spec UserSpec) (User, error) {
	if spec.UID != nil && spec.Username != "" {
		return User{}, errors.New("user: run_as_user and run_as_username exclude each other")
	}
	if spec.GID != nil && spec.UID == nil && spec.Username == "" {
		return User{}, errors.New("user: run_as_group needs run_as_user or run_as_username")
	}
	db, err := readDatabase(root)
	if err != nil {
		return User{}, fmt.Errorf("user: %w", err)
	}
	who, group, err := db.find(spec)
	if err != nil {
		return User{}, fmt.Errorf("user: %w", err)
	}
	u := User{UID: who.uid, GID: who.gid, Home: who.home}
	switch {
	case spec.GID != nil:
		if u.GID, err = checkID("run_as_group", *spec.GID); err != nil {
			return User{}, err
		}
	case group != "":
		if u.GID, err = db.groupID(group); err != nil {
			return User{}, fmt.Errorf("user %q of the image: %w", spec.ImageUser, err)
		}
	}
	if !validHome(u.Home) {
		u.Home = "/"
	}
	u.Groups, err = db.groups(u.GID, who.name, spec)
	return u, err
}

// UserByNumber resolves a spec without names where there is no image: for run_as_user
// absent it is user 0.
func UserByNumber(spec UserSpec) (User, error) {
	if spec.GID != nil && spec.UID == nil {
		return User{}, errors.New("user: run_as_group needs run_as_user")
	}
	var u User
	var err error
	if spec.UID != nil {
		if u.UID, err = checkID("run_as_user", *spec.UID); err != nil {
			return User{}, err
		}
	}
	if spec.GID != nil {
		if u.GID, err = checkID("run_as_group", *spec.GID); err != nil {
			return User{}, err
		}
	}
	u.Groups, err = database{}.groups(u.GID, "", spec)
	return u, err
}

// find returns the user and, for the image's own choice, the group that goes with it.
func (db database) find(spec UserSpec) (who passwdEntry, group string, err error) {
	switch {
	case spec.UID != nil:
		uid, err := checkID("run_as_user", *spec.UID)
		if err != nil {
			return who, "", err
		}
		who, _ = db.userByID(uid)
		return who, "", nil
	case spec.Username != "":
		// Always a name, of digits or not: "the user MUST exist in the container image".
		if err := checkAccountName(spec.Username); err != nil {
			return who, "", err
		}
		who, _, err = db.userByName(spec.Username)
		return who, "", err
	}
	name, group, _ := strings.Cut(spec.ImageUser, ":")
	if name == "" && group != "" {
		return who, "", fmt.Errorf("%q of the image names a group without a user", spec.ImageUser)
	}
	if name == "" {
		name = "0"
	}
	who, _, err = db.user(name)
	if err != nil {
		err = fmt.Errorf("%q of the image: %w", spec.ImageUser, err)
	}
	return who, group, err
}

// user looks up a name or a number. A number that /etc/passwd does not know is a user
// all the same (known is false); a name is an error then. What looks like a number is
// never looked up as a name: an entry of that name could be anybody (CVE-2026-46680).
func (db database) user(s string) (who passwdEntry, known bool, err error) {
	if numeric(s) {
		uid, err := parseID(s)
		if err != nil {
			return who, false, err
		}
		who, known = db.userByID(uid)
		return who, known, nil
	}
	if err := checkAccountName(s); err != nil {
		return who, false, err
	}
	return db.userByName(s)
}

func (db database) groupID(s string) (uint32, error) {
	if numeric(s) {
		return parseID(s)
	}
	if err := checkAccountName(s); err != nil {
		return 0, err
	}
	return db.groupByName(s)
}

// groups always contain the primary group: a process that lacks it among its
// supplementary groups escapes permissions that deny a group (CVE-2022-2995).
func (db database) groups(primary uint32, name string, spec UserSpec) ([]uint32, error) {
	out, seen := []uint32{primary}, map[uint32]bool{primary: true}
	add := func(gid uint32) {
		if !seen[gid] {
			seen[gid] = true
			out = append(out, gid)
		}
	}
	if !spec.Strict && name != "" {
		for gid := range db.memberships(name) {
			add(gid)
		}
	}
	for _, g := range spec.SupplementalGroups {
		gid, err := checkID("supplemental_groups", g)
		if err != nil {
			return nil, err
		}
		add(gid)
	}
	if len(out) > maxGroups {
		return nil, fmt.Errorf("user: %d groups are more than the kernel's %d", len(out), maxGroups)
	}
	slices.Sort(out)
	return out, nil
}

func checkID(field string, id int64) (uint32, error) {
	if id < 0 || id > maxID {
		return 0, fmt.Errorf("%s: %d is not between 0 and %d", field, id, int64(maxID))
	}
	return uint32(id), nil
}

// numeric tells whether s can only be meant as a number, be it a valid one or not.
func numeric(s string) bool {
	digits := strings.TrimLeft(s, "+-")
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}

// parseID takes plain decimal numbers only: other programs read a sign or a leading
// zero in other ways, and must not see another user than we do.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxID || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is not a plain number between 0 and %d", s, int64(maxID))
	}
	return uint32(n), nil
}

// checkAccountName refuses what no useradd makes and what is dangerous to print or split.
func checkAccountName(s string) error {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f || r == ':' || r == ',' || r == '/' || r == '\uFFFD' }
	if s == "" || len(s) > 256 || s[0] == '-' || s[0] == '+' || strings.ContainsFunc(s, bad) {
		return fmt.Errorf("%q is not a user or group name", s)
	}
	return nil
}

// validHome keeps out what would break lines and fields of whoever prints it (CVE-2022-4318).
func validHome(s string) bool {
	return strings.HasPrefix(s, "/") && len(s) <= 4096 &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == ':' })
}
