package privs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxGroupLine bounds a line of the group file; a longer one is an error.
const maxGroupLine = 1 << 20

// SystemGroups returns the ids of the groups that list user as a member in /etc/group. It
// asks no other directory service: groups that only LDAP or the like knows are missing.
func SystemGroups(user string) ([]uint32, error) {
	f, err := os.Open("/etc/group")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return groupsOf(f, user)
}

// groupsOf reads lines name:password:gid:member,member. Others are skipped, as the
// C library does.
func groupsOf(r io.Reader, user string) ([]uint32, error) {
	if user == "" {
		return nil, nil
	}
	var groups []uint32
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxGroupLine)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != 4 || !slices.Contains(strings.Split(fields[3], ","), user) {
			continue
		}
		gid, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil || uint32(gid) == Unset || slices.Contains(groups, uint32(gid)) {
			continue
		}
		if groups = append(groups, uint32(gid)); len(groups) == maxGroups {
			break
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("/etc/group: %w", err)
	}
	return groups, nil
}
