# frozen_string_literal: true

# Helpers of all endpoints, with the names and texts they have in GitLab.
module CommonHelpers
  # The acting key or user: found by the first of these parameters that is present, even when it is empty.
  Actor = Struct.new(:key, :user) do
    def self.from_params(params)
      if params[:key_id]
        key = Key.auth.find_by(id: params[:key_id])
        new(key, key&.owner)
      elsif params[:user_id]
        new(nil, User.find_by(id: params[:user_id]))
      elsif params[:username]
        new(nil, User.find_by_username(params[:username]))
      else
        from_identifier(params[:identifier])
      end
    end

    def self.from_identifier(identifier)
      case identifier
      when /\Auser-(\d+)\z/ then new(nil, User.find_by(id: Regexp.last_match(1)))
      when /\Akey-(\d+)\z/ then from_params(key_id: Regexp.last_match(1))
      else new
      end
    end

    def key_or_user
      key || user
    end

    def identifier
      key ? "key-#{key.id}" : "user-#{user&.id}"
    end
  end

  def actor
    @actor ||= Actor.from_params(params)
  end

  def gitaly_info
    { address: 'unix:/var/opt/gitlab/gitaly/gitaly.socket', token: 'gitaly-token', features: {} }
  end

  def gitaly_repository(project)
    {
      storage_name: 'default',
      relative_path: project.relative_path,
      gl_repository: project.gl_repository,
      gl_project_path: project.path
    }
  end

  def unauthorized!
    message!(401, '401 Unauthorized')
  end

  def forbidden!
    message!(403, '403 Forbidden')
  end

  def not_found!(what = nil)
    message!(404, ['404', what, 'Not Found'].compact.join(' '))
  end

  def bad_request!(reason)
    message!(400, "400 Bad request - #{reason}")
  end

  def message!(status, message)
    error!({ message: message }, status)
  end
end
